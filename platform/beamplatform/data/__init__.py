"""Records and prompts: what a model is trained on and asked."""
