"""What a sweep will run and whether it can: plan, memory, proposals, timing, ledger."""
