"""Scores of generators and classifiers on real rows."""
