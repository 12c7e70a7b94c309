"""Models: parts of CVAEs, the hypernetwork, cohort layers, the linear probe."""
