"""Forks: nothing that one of them leaves in memory is found by another."""

import os
import signal

import pytest

from fedsim.errors import UserError
from fedsim.evidence.forked import ProcessEnded, forked, in_forks


class Misplaced(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


SEEN: list[int] = []


def remember(value: int) -> list[int]:
    SEEN.append(value)
    return SEEN


def raise_error(error: Exception) -> None:
    raise error


def test_forks_answer_in_order_and_share_no_memory() -> None:
    assert list(in_forks(remember, [(1,), (2,), (3,)])) == [[1], [2], [3]]
    assert SEEN == []


def test_end_of_a_fork_is_raised_in_its_parent() -> None:
    with pytest.raises(ProcessEnded, match="ended its process"):
        forked(os._exit, 3)
    with pytest.raises(ProcessEnded, match="ended its process"):
        forked(signal.raise_signal, signal.SIGINT)
    with pytest.raises(UserError, match="here: is wrong"):
        forked(raise_error, UserError("here", "is wrong"))


def test_exception_that_cannot_be_unpickled_keeps_its_text() -> None:
    with pytest.raises(ProcessEnded, match="Misplaced: here: is wrong"):
        forked(raise_error, Misplaced("here", "is wrong"))
