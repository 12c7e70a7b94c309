"""A grid made ready, and a cell from its start to its row, in one process and without Ray."""
