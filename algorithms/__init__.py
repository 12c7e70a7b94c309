"""The algorithms that the harness exists for."""
