"""Privacy: the plan before the first step, the ledger, accountants, clipping, and noise."""
