"""Models: the parts of CVAEs, the hypernetwork, layers of a cohort, and the linear probe."""
