"""Functions that find answers in texts and compare answers, used by the tasks."""
