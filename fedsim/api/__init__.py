"""The functions behind :mod:`fedsim` and the commands, one per task."""
