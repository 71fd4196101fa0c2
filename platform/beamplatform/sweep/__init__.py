"""A sweep: plan and check the trials, train them, evaluate their exported models, compare the results."""
