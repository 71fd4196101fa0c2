"""One training run: Ray Train workers, each with a DeepSpeed engine around the model."""
