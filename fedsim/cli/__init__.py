"""The ``fedsim`` command: a file for each group of its commands, which are shown in the order of their import."""

from fedsim.cli import grids, methods, data, runs, budgets  # noqa: F401, I001
from fedsim.cli.app import app, main

__all__ = ["app", "main"]
