"""The training of one cell without Ray: cohorts of clients, rounds and checkpoints."""
