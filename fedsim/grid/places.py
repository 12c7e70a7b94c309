"""Where the values of a grid stand, in the words of a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where the values of a grid came from, to name places in messages; no part of what makes two grids equal."""

    file: str = field(default="", compare=False)
    data: Any = field(default=None, compare=False)
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    overrides: tuple[Loc, ...] = field(default=(), compare=False)

    def place(self, loc: Loc) -> str:
        """``file:line: key[i].key``; the parts of ``loc`` that validation added to what the user wrote are left out."""
        loc = self._written(loc)
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
        if any(loc[: len(key)] == key or (loc and loc not in self.lines and key[: len(loc)] == loc) for key in self.overrides):
            return f"set {text}"
        if not self.file:
            return text or "grid"
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), None)
        return ": ".join(part for part in (self.file if line is None else f"{self.file}:{line}", text) if part)

    def _written(self, loc: Loc) -> Loc:
        if self.data is None:
            return loc
        kept: list[str | int] = []
        at: Any = self.data
        for part in loc:
            if isinstance(at, Mapping) and isinstance(part, str) and part != "[key]":
                at = at.get(part)
            elif isinstance(at, list | tuple) and isinstance(part, int) and part < len(at):
                at = at[part]
            else:
                continue
            kept.append(part)
        return tuple(kept)


class Options(Origin):
    """Places of a grid that was given as parameters of a function."""

    def place(self, loc: Loc) -> str:
        """The parameter."""
        inner = [str(part) for part in loc[3:] if isinstance(part, str)]
        if loc and loc[0] == "algorithms":
            return f"params {'.'.join(inner)}" if "params" in loc and inner else "algorithm"
        return str(loc[0]) if loc else "algorithm"
