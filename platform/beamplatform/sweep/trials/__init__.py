"""The trials of a sweep: their queue, Ray Tune's actors, early stopping, what becomes of each."""
