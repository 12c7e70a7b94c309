"""Writes numbers and settings as text, and prints text without markup."""

from __future__ import annotations

import json
import math
import re
from decimal import ROUND_CEILING, Decimal
from io import StringIO
from typing import Any, ClassVar

from rich.console import Console


def number(value: float | None, digits: int = 6) -> str:
    """Return a number as short text, such as 0.1, 10, 1e-5 or ∞; an empty text for None.

    Args:
        value: the number.
        digits: the number of significant digits.
    """
    if value is None:
        return ""
    if value == math.inf:
        return "∞"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def at_most(bound: float | None) -> str:
    """Return an upper bound as :func:`number` writes it, rounded up to four significant digits.

    Args:
        bound: the upper bound; None gives an empty text.
    """
    if not bound or math.isinf(bound):
        return number(bound)
    fourth_digit = Decimal(1).scaleb(Decimal(bound).adjusted() - 3)
    return number(float(Decimal(bound).quantize(fourth_digit, ROUND_CEILING)), 4)


def counted(count: float, noun: str) -> str:
    """Return a count and its noun, with an s for the plural: 1 cell, 2 cells."""
    plural = "" if count == 1 else "s"
    return f"{count:.10g} {noun}{plural}"


def json_number(value: Any) -> Any:
    """Return a value for JSON: a text for the numbers inf, -inf and nan, else the value itself."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def spelled(value: Any) -> str:
    """Return a value as a grid file would spell it: texts without quotes, other values as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def setting(
    *names: str | None,
    alpha: float | None = None,
    clients: int | None = None,
    epsilon: float | None = None,
    seed: int | None = None,
) -> str:
    """Return the setting of a cell as a text.

    An example is ``digits · α = 0.3 · 10 clients · ε = 1 · seed 0``. Values that are None or empty
    are left out.
    """
    parts = [name for name in names if name]
    if alpha is not None:
        parts.append(f"α = {number(alpha)}")
    if clients is not None:
        parts.append(counted(clients, "client"))
    if epsilon is not None:
        parts.append(f"ε = {number(epsilon)}")
    if seed is not None:
        parts.append(f"seed {seed}")
    return " · ".join(parts)


def plain(text: str) -> str:
    """Return a docstring without its markup."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def encodable(text: str) -> str:
    """Return ``text`` with a ``?`` for every character that UTF-8 cannot encode.

    Names of files that are not UTF-8 contain such characters.
    """
    return text.encode(errors="replace").decode()


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line without markup, automatic colours and line breaks at the terminal's width."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console without emoji (``:x:``) and markup (``[x]``), in tables too."""
    return Console(stderr=stderr, emoji=False, markup=False)


class Printed:
    """A result that prints itself, on the command line and as the value of a notebook's cell.

    Attributes:
        fits_width: whether its output adapts to the terminal's width. If False, it is printed on a
            console that is wide enough for a table (:func:`wide_console`).
    """

    fits_width: ClassVar[bool] = False

    def show(self, console: Console) -> None:
        """Print the result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        text = StringIO()
        console = Console(
            file=text,
            width=140,
            emoji=False,
            markup=False,
            color_system=None,
            force_terminal=False,
            force_jupyter=False,
        )
        self.show(console)
        return text.getvalue().rstrip()


def wide_console(console: Console, width: int = 200) -> Console:
    """Return a console like ``console`` that is at least ``width`` columns wide.

    A table is then not cut to the terminal's width.
    """
    return Console(
        file=console.file,
        width=max(console.width, width),
        force_terminal=console.is_terminal,
        force_jupyter=console.is_jupyter,
        no_color=console.no_color,
        emoji=False,
        markup=False,
    )
