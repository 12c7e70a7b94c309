"""Forks: nothing that one of them leaves in memory is found by another."""

import os
import signal

import pytest

from fedsim.errors import UserError
from fedsim.evidence.forked import ProcessEnded, forked, in_forks

SEEN: list[int] = []


def remember(value: int) -> list[int]:
    SEEN.append(value)
    return SEEN


def own(error: Exception) -> None:
    raise error


def test_results_come_in_order_and_no_fork_finds_what_another_one_left() -> None:
    assert list(in_forks(remember, [(1,), (2,), (3,)])) == [[1], [2], [3]]
    assert SEEN == []


def test_how_a_fork_ends_is_raised_here() -> None:
    for end, value in ((os._exit, 3), (signal.raise_signal, signal.SIGINT)):
        with pytest.raises(ProcessEnded, match="ended its process"):
            forked(end, value)
    with pytest.raises(UserError, match="here: is wrong"):
        forked(own, UserError("here", "is wrong"))
