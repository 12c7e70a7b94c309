"""What a check says about an algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.plugins.registry import blamed, said


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check.

    Attributes:
        passed: None where there was nothing to check.
        reason: what was seen, with its numbers.
        fix: one sentence; empty unless it failed.
    """

    passed: bool | None
    reason: str
    fix: str = ""


def passed(reason: str) -> Verdict:
    """All is well."""
    return Verdict(True, reason)


def failed(reason: str, fix: str) -> Verdict:
    """A fault, and what to do about it."""
    return Verdict(False, reason, fix)


def idle(reason: str) -> Verdict:
    """There was nothing to check, or no way to."""
    return Verdict(None, reason)


def raised(error: Exception | SystemExit, cls: type) -> Verdict:
    """An exception is a fault of the algorithm ``cls``, named with its place."""
    return failed(f"{said(error)[:300]} ({blamed(error, cls)})", "mend the line that raises it")
