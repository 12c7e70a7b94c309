"""Makes tables for a terminal, whose lines break only between words.

:func:`frame_table` turns a data frame into a table and wraps its texts. :func:`fitting_columns`
leaves out the columns for which the terminal is too narrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedsim.words import number

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import JustifyMethod

PADDING = 2
"""The number of spaces behind each column. Between two columns the box adds one more."""
SHORT_HEAD = 8
"""The largest number of characters of a head, such as ``ε = 1``, that is not wrapped."""


def frame_table(title: str, frame: pd.DataFrame, width: int | None = None) -> Table:
    """Return a frame as a table of rich, without its index.

    Floats are written to four significant digits. Numbers are aligned to the right, texts to the
    left.

    Args:
        title: The title; may be empty.
        frame: The frame.
        width: The width of the table in characters; texts are wrapped to fit. Default: rich wraps
            them at the width of the terminal.
    """
    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, PADDING, 0, 0),
        show_edge=False,
    )
    columns = [_texts(frame[name]) for name in frame.columns]
    widths = _widths(columns, width)
    for name, column_width in zip(frame.columns, widths, strict=True):
        side: JustifyMethod = "left"
        if frame[name].dtype.kind in "iuf":
            side = "right"
        table.add_column(
            Text(str(name)),
            justify=side,
            overflow="fold",
            width=column_width,
        )
    # The first text of a column is its head, which the table has already.
    for texts in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, texts))
    return table


def fitting_columns(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """Return the columns of a frame that fit into a width without a broken word.

    If not all of them fit, empty columns are left out first, then filled ones from the right. The
    first column and the last filled one always stay.

    Args:
        frame: A frame of texts.
        width: The number of characters.
    """
    if _fits(frame, width):
        return frame
    first, *others = frame.columns
    filled = [name for name in others if frame[name].astype(bool).any()]
    shown = frame[[first, *filled]]
    while shown.shape[1] > 2 and not _fits(shown, width):
        shown = shown.drop(columns=shown.columns[-2])
    return shown


def texts_of(values: pd.Series[Any], digits: int = 6) -> pd.Series[str]:
    """Return values as texts: floats to ``digits`` significant digits, missing values empty."""
    # A caller with a series has imported pandas already.
    import pandas as pd

    def text(value: Any) -> str:
        if pd.isna(value):
            return ""
        if isinstance(value, float):
            return number(value, digits)
        return str(value)

    return values.map(text)


def _texts(column: pd.Series[Any]) -> list[str]:
    """Return the head of a column and its values as texts."""
    return [str(column.name), *texts_of(column, 4)]


def _least_width(texts: list[str]) -> int:
    """Return the least width in which no word of a column is broken.

    Args:
        texts: The head of the column and its values.
    """
    head, *values = texts
    words = [word for text in values for word in text.split()]
    if len(head) <= SHORT_HEAD:
        words.append(head)
    else:
        words += head.split()
    return max(map(len, words), default=1)


def _fits(frame: pd.DataFrame, width: int) -> bool:
    """Return whether all columns have room beside each other without a broken word."""
    widths = [_least_width(_texts(frame[name])) for name in frame.columns]
    return _with_gaps(widths) <= width


def _with_gaps(widths: list[int]) -> int:
    """Return the width of a table from the widths of its columns, with the gaps between them."""
    return sum(widths) + (PADDING + 1) * len(widths) - 1


def _widths(columns: list[list[str]], width: int | None) -> list[int] | list[None]:
    """Return the width of each column, or None for each where rich should choose.

    The widest columns are narrowed first, none below its longest word.

    Args:
        columns: The texts of each column, its head first.
        width: The width of the whole table; None if it is not limited.

    Returns:
        The widths. They are None if every column has room already, or if even the longest words
        do not fit.
    """
    widths = [max(map(len, texts)) for texts in columns]
    unlimited = [None] * len(columns)
    if width is None or _with_gaps(widths) <= width:
        return unlimited
    least = [_least_width(texts) for texts in columns]
    while _with_gaps(widths) > width:
        reducible = [column for column in range(len(widths)) if widths[column] > least[column]]
        if not reducible:
            return unlimited
        widths[max(reducible, key=widths.__getitem__)] -= 1
    return widths
