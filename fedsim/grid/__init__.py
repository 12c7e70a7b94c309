"""Grid files: what to scan."""
