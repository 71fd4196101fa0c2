"""The plan of a sweep: its trials, their memory and timing, proposals of new points, and the ledger."""
