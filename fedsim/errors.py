"""The errors that reach a user, and the hint that names the nearest known word."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class UserError(Exception):
    """A user's mistake: one message with the place, the mistake and a hint; the command line exits
    with ``exit_code``.

    ``where`` is a file and key, an option, a path; empty where only the caller knows it, see
    :func:`at`. The hint may be empty where ``what`` already says how to correct it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where = where
        self.what = what
        self.hint = hint
        super().__init__(where, what, hint)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.where, self.what))) + (
            f"; {self.hint}" if self.hint else ""
        )

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RunLost(UserError):
    """A running grid was stopped by its machine: a full disk, a run folder that was deleted.
    Results that were written stay.
    """

    exit_code = 1


class PluginError(UserError):
    """A plug-in's mistake: it cannot be imported, lacks a method, or a method returns an unusable
    value. Raised before anything runs.
    """


class NotPerExample(ValueError):
    """One row's presence changes the loss or statistic of other rows, so clipping single rows
    bounds nothing.
    """


def not_installed(where: str, package: str, extra: str) -> UserError:
    """The error where an optional package is missing; ``extra`` is the one of this distribution
    that installs it.
    """
    hint = (
        f"python -m pip install {package}, or in a checkout of fedsim: python -m pip install "
        f"-e '.[{extra}]'"
    )
    return UserError(where, f"the package '{package}' is not installed", hint)


@contextmanager
def at(location: str | Callable[[str], str]) -> Iterator[None]:
    """Name the place of every UserError that passes through: a prefix of the error's own place, or
    a function of it.
    """
    try:
        yield
    except UserError as error:
        if isinstance(location, str):
            where = ": ".join(filter(None, (location, error.where)))
        else:
            where = location(error.where)
        raise type(error)(where, error.what, error.hint) from error


def check_choice(where: str, given: object, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the ``choices``; ``where`` is the parameter that has it."""
    known = list(choices)
    if given not in known:
        raise UserError(where, f"there is no '{given}'", nearest(str(given), known))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the closest known one in any case, if there is a close one,
    and all of them.
    """
    names = sorted(known)
    by_lower_case = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    if names:
        listing = f"known: {', '.join(names)}"
    else:
        listing = "none is known"
    if close:
        return f"did you mean '{by_lower_case[close[0]]}'? ({listing})"
    return listing
