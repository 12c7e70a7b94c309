"""Consoles for tables that are for reading, also in a pipe."""

from __future__ import annotations

from rich.console import Console


def wide_console(console: Console, width: int = 200) -> Console:
    """``console``, but at least ``width`` columns wide: a table's rows are not cut to a terminal's width."""
    return Console(file=console.file, width=max(console.width, width), force_terminal=console.is_terminal, no_color=console.no_color)
