"""Scoring models on tasks: answers, verdicts, scores, and the command that scores adapters."""
