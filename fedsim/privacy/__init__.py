"""Privacy: the plan before the first step, the ledger of what ran, accountants, clipping, noise."""
