"""Tables of a terminal: a frame within the width of the terminal, without a broken word.

:func:`frame_table` wraps texts between words. :func:`fitting_columns` leaves out columns that have
no room.
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
"""The number of blanks behind each column. Between two columns the box adds one more."""
SHORT_HEAD = 8
"""The largest number of characters of a head, such as ``ε = 1``, that is not wrapped."""


def frame_table(title: str, frame: pd.DataFrame, width: int | None = None) -> Table:
    """Return a frame as a table of rich, without its index.

    Numbers are written to four digits and stand on the right, texts on the left.

    Args:
        title: The title; may be empty.
        frame: The frame.
        width: The number of characters in which texts are wrapped between words; default: rich
            wraps them where the terminal ends.
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
    for texts in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, texts))
    return table


def fitting_columns(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """Return those columns of a frame whose words and numbers fit whole into a width.

    Empty columns are left out first, then those before the last one. The first column and the last
    one always stay.

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
    """Return values as texts, numbers to some significant digits, and nothing for missing ones."""
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
    """Return the width of a table, given those of its columns."""
    return sum(widths) + (PADDING + 1) * len(widths) - 1


def _widths(columns: list[list[str]], width: int | None) -> list[int] | list[None]:
    """Return the width of each column, or None for each where rich should choose.

    The widest columns are narrowed first, none below its longest word.

    Args:
        columns: The texts of each column, its head first.
        width: The width of the whole table; None: any.

    Returns:
        The widths. They are None if every column has what it needs, or if the longest words do not
        fit.
    """
    widths = [max(map(len, texts)) for texts in columns]
    unlimited = [None] * len(columns)
    if width is None or _with_gaps(widths) <= width:
        return unlimited
    least = [_least_width(texts) for texts in columns]
    while _with_gaps(widths) > width:
        wide = [place for place in range(len(widths)) if widths[place] > least[place]]
        if not wide:
            return unlimited
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths
