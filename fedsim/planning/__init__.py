"""Before anything runs: a grid made ready, a method tried on made-up rows."""
