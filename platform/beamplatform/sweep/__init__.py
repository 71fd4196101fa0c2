"""A sweep: plan and check the trials, train them, evaluate what they exported, compare."""
