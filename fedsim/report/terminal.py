"""Frames as a terminal shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from fedsim.words import number

if TYPE_CHECKING:
    import pandas as pd


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A frame without its index: numbers to four digits on the right, texts as they are on the
    left.
    """
    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_edge=False,
    )
    for name in frame.columns:
        table.add_column(
            Text(str(name)),
            justify="right" if frame[name].dtype.kind in "iuf" else "left",
            overflow="fold",
        )
    for record in frame.itertuples(index=False):
        # NaN alone is not equal to itself; what is missing is empty
        texts = [
            ""
            if value is None or value != value
            else number(value, 4)
            if isinstance(value, float)
            else str(value)
            for value in record
        ]
        table.add_row(*map(Text, texts))
    return table
