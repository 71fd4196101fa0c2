"""The trials of a sweep: their queue, training, early stopping and evaluation, and the events that report them."""
