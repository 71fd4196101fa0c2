"""The data of a trial: records, splits, token sequences, batches, and quality checks of the records."""
