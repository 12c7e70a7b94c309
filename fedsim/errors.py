"""The errors that reach a user, and the hint that names the nearest right word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake: one message that says where, what, and what would be right; the command line exits with 2.

    Args:
        where: the place: a file and key, an option, a path.
        what: what is wrong there.
        right: what would be right; may be empty where ``what`` already says it.
    """

    def __init__(self, where: str, what: str, right: str = "") -> None:
        self.where, self.what, self.right = where, what, right
        super().__init__(f"{where}: {what}" + (f"; {right}" if right else ""))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.where, self.what, self.right)


class PluginError(UserError):
    """A plug-in's mistake, found before anything runs: it cannot be imported, lacks a method, or returns what nobody can use."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the closest known one if there is a close one, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listing = f"known: {', '.join(names)}" if names else "none is known"
    return f"did you mean '{close[0]}'? ({listing})" if close else listing
