"""Frames as a terminal shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedsim.words import number

if TYPE_CHECKING:
    import pandas as pd

PADDING = 2
"""Blanks behind each column, and one more between two of them, where the box has its line."""
SHORT_HEAD = 8
"""A head of at most so many characters, such as ``ε = 1``, stays on one line."""


def frame_table(title: str, frame: pd.DataFrame, width: int | None = None) -> Table:
    """A frame without its index: numbers to four digits on the right, texts as they are on the
    left. In a ``width`` of characters, texts are wrapped between words.
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
    for place, name in enumerate(frame.columns):
        table.add_column(
            Text(str(name)),
            justify="right" if frame[name].dtype.kind in "iuf" else "left",
            overflow="fold",
            width=widths[place] if widths else None,
        )
    for texts in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, texts))
    return table


def fitting_columns(frame: pd.DataFrame, width: int) -> pd.DataFrame:
    """A frame as far as its words and numbers stand whole in a width: empty columns are left out
    first, then those before the last one. The first column and the last one always stay.
    """
    if _fits(frame, width):
        return frame
    names = list(frame.columns)
    filled = [name for name in names[1:] if frame[name].astype(bool).any()]
    shown = frame[[names[0], *filled]]
    while shown.shape[1] > 2 and not _fits(shown, width):
        shown = shown.drop(columns=shown.columns[-2])
    return shown


def _texts(column: pd.Series[Any]) -> list[str]:
    """The head of a column and its values as texts; what is missing is empty."""
    texts = [str(column.name)]
    for value in column:
        if value is None or value != value:  # NaN alone is not equal to itself
            texts.append("")
        elif isinstance(value, float):
            texts.append(number(value, 4))
        else:
            texts.append(str(value))
    return texts


def _least(texts: list[str]) -> int:
    """The width in which no word of a column is broken."""
    head, *values = texts
    words = [word for text in values for word in text.split()]
    if len(head) <= SHORT_HEAD:
        words += [head]
    else:
        words += head.split()
    return max(map(len, words), default=1)


def _fits(frame: pd.DataFrame, width: int) -> bool:
    """Whether all columns have room beside each other without a broken word."""
    least = [_least(_texts(frame[name])) for name in frame.columns]
    return _with_gaps(least) <= width


def _with_gaps(widths: list[int]) -> int:
    return sum(widths) + (PADDING + 1) * len(widths) - 1


def _widths(columns: list[list[str]], width: int | None) -> list[int] | None:
    """The width of each column, of which the widest give way first, none below its longest word;
    None where each has what it needs.
    """
    widths = [max(map(len, texts)) for texts in columns]
    if width is None or _with_gaps(widths) <= width:
        return None
    least = [_least(texts) for texts in columns]
    while _with_gaps(widths) > width:
        can_give = [place for place, own in enumerate(widths) if own > least[place]]
        if not can_give:
            return None
        widest = max(can_give, key=widths.__getitem__)
        widths[widest] -= 1
    return widths
