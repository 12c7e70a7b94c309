"""What `fedsim check` looks at, and the worlds it looks at."""
