"""Numbers and settings in words, and consoles that print text as it is."""

from __future__ import annotations

import json
import math
import re
from decimal import ROUND_CEILING, Decimal
from io import StringIO
from typing import Any, ClassVar

from rich.console import Console


def number(value: float | None, digits: int = 6) -> str:
    """A number to ``digits`` significant digits, as people write it: 0.1, 10, 1e-5, ∞; empty for
    None.
    """
    if value is None:
        return ""
    if value == math.inf:
        return "∞"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def at_most(bound: float | None, digits: int = 4) -> str:
    """A bound as :func:`number` writes it, rounded up."""
    if not bound or math.isinf(bound):
        return number(bound)
    unit = Decimal(1).scaleb(Decimal(bound).adjusted() + 1 - digits)
    return number(float(Decimal(bound).quantize(unit, ROUND_CEILING)), digits)


def counted(count: float, noun: str) -> str:
    """A count with its noun, which forms its plural with an s: 1 cell, 2 cells, 0.5 GPUs."""
    if count == 1:
        return f"{count:.10g} {noun}"
    return f"{count:.10g} {noun}s"


def json_number(value: Any) -> Any:
    """A number as JSON may hold it: "inf", "-inf" and "nan" are words; anything else as it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value


def spelled(value: Any) -> str:
    """A value as a grid file would have it."""
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
    """Where something stands in a grid: ``digits · α = 0.3 · 10 clients · ε = 1 · seed 0``; what is
    None or empty is left out.
    """
    parts = [name for name in names if name]
    if alpha is not None:
        parts += [f"α = {number(alpha)}"]
    if clients is not None:
        parts += [counted(clients, "client")]
    if epsilon is not None:
        parts += [f"ε = {number(epsilon)}"]
    if seed is not None:
        parts += [f"seed {seed}"]
    return " · ".join(parts)


def plain(text: str) -> str:
    """A docstring without its marks."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")


def encodable(text: str) -> str:
    """``text`` with a ``?`` for every half of a character, as names of files that are not UTF-8
    hold them.
    """
    return text.encode(errors="replace").decode()


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, no automatic colours, no line breaks at the terminal's
    width.
    """
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def plain_console(*, stderr: bool = False) -> Console:
    """A console without emoji (``:x:``) and without markup (``[x]``), in tables too."""
    return Console(stderr=stderr, emoji=False, markup=False)


class Printed:
    """What prints itself: by a command, and in Python as the value of a cell or line.

    Attributes:
        fits_width: whether it fits itself to a terminal's width; what does not is never printed
            narrower than a command's output is wide.
    """

    fits_width: ClassVar[bool] = False

    def show(self, console: Console) -> None:
        """Print it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        plain: dict[str, Any] = {
            "emoji": False,
            "markup": False,
            "color_system": None,
            "force_terminal": False,
            "force_jupyter": False,
        }
        self.show(Console(file=(text := StringIO()), width=140, **plain))
        return text.getvalue().rstrip()


def wide_console(console: Console, width: int = 200) -> Console:
    """``console``, but at least ``width`` columns wide: a table's rows are not cut to a terminal's
    width.
    """
    kept: dict[str, Any] = {
        "force_terminal": console.is_terminal,
        "force_jupyter": console.is_jupyter,
        "no_color": console.no_color,
    }
    return Console(
        file=console.file, width=max(console.width, width), **kept, emoji=False, markup=False
    )
