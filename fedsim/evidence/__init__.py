"""What a privacy claim rests on: checks, audits, and every ε computed again from results."""
