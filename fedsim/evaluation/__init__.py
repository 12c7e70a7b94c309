"""What generators and classifiers are worth, on real rows."""
