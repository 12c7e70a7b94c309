"""One cell's training, in one process and without Ray: cohorts of clients, rounds, checkpoints."""
