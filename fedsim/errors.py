"""Defines the errors that a user sees, and functions that write their places and hints."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class UserError(Exception):
    """A user's mistake, as one message with the place, the mistake and a hint.

    The command line exits with ``exit_code``.

    Attributes:
        where: a file and key, an option or a path; empty if only the caller knows it, see
            :func:`at`.
        what: the mistake.
        hint: what would be right; empty if the mistake says so already.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where = where
        self.what = what
        self.hint = hint
        super().__init__(where, what, hint)

    def __str__(self) -> str:
        mistake = ": ".join(filter(None, (self.where, self.what)))
        return "; ".join(filter(None, (mistake, self.hint)))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class RunLost(UserError):
    """Raised when the machine stops a running grid: a full disk, or a run folder that was deleted.

    Results that were already written are kept.
    """

    exit_code = 1


class PluginError(UserError):
    """A plug-in's mistake, raised before anything runs.

    The plug-in cannot be imported or lacks a method, or a method returns an unusable value.
    """


class NotPerExample(ValueError):
    """Raised when one example changes the loss or statistic of other examples.

    Clipping the examples one by one then does not bound the effect of one example.
    """


def not_installed(where: str, package: str, extra: str) -> UserError:
    """Return the error for an optional package that is missing.

    Args:
        where: the place that needs the package.
        package: the name of the package.
        extra: the extra of fedsim that installs it.
    """
    hint = (
        f"python -m pip install {package}, or in a checkout of fedsim: python -m pip install "
        f"-e '.[{extra}]'"
    )
    return UserError(where, f"the package '{package}' is not installed", hint)


@contextmanager
def at(location: str | Callable[[str], str]) -> Iterator[None]:
    """Add the place to every UserError that passes through the block.

    Args:
        location: a text to put before the error's own place, or a function that is given the
            error's own place and returns the new one.

    Raises:
        UserError: the block raised it; it has the same class, and the new place.
    """
    try:
        yield
    except UserError as error:
        if callable(location):
            where = location(error.where)
        else:
            where = ": ".join(filter(None, (location, error.where)))
        raise type(error)(where, error.what, error.hint) from error


def check_choice(where: str, given: object, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices.

    Args:
        where: the name of the parameter.
        given: its value.
        choices: the allowed words.

    Raises:
        UserError: the value is none of the allowed words.
    """
    known = list(choices)
    if given not in known:
        raise UserError(where, f"there is no '{given}'", nearest(str(given), known))


def check_least(where: str, given: int | None, least: int) -> None:
    """Refuse a number that is too small.

    Args:
        where: the name of the parameter.
        given: its value; None if it was not given, which is never refused.
        least: the least allowed number.

    Raises:
        UserError: the value is below the least allowed number.
    """
    if given is not None and given < least:
        raise UserError(where, f"must be at least {least}, got {given}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest known one, and all known ones.

    Upper and lower case count as equal.
    """
    names = sorted(known)
    if not names:
        return "none is known"
    listing = f"known: {', '.join(names)}"
    by_lower_case = {word.lower(): word for word in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    if close:
        return f"did you mean '{by_lower_case[close[0]]}'? ({listing})"
    return listing
