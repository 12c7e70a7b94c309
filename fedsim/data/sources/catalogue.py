"""The data sets that fedsim knows, as a table."""

from __future__ import annotations

from rich.table import Table

from fedsim.data.sources import SOURCES


def catalogue_table() -> Table:
    """A line for every data set: what to write in a grid, classes, images, pixels, licence, source, and whether it is on this machine."""
    table = Table(title="data sets", title_justify="left", show_edge=False)
    for name in ("dataset:", "classes", "train / test", "pixels", "licence", "source", "on this machine"):
        table.add_column(name, justify="right" if name in ("classes", "train / test") else "left", overflow="fold")
    for source in SOURCES.values():
        for line in source.listing():
            table.add_row(*line)
    return table
