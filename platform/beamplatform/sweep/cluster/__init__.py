"""The Ray cluster of a sweep: its size, health, credentials and placement groups."""
