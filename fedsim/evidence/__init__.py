"""What a privacy claim rests on: checks, audits, and epsilons recomputed from rows."""
