"""Empirical lower bounds of what a training gives away, beside what it claims."""
