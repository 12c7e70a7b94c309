"""Forks: nothing that one of them leaves in memory is found by another."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fedsim.errors import UserError
from fedsim.evidence.forked import ProcessEnded, alone, forked, in_forks

SEEN: list[int] = []


class Unsendable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError


def remember(value: int) -> list[int]:
    SEEN.append(value)
    return SEEN


def own(error: Exception) -> None:
    raise error


def test_results_come_in_order_and_no_fork_finds_what_another_one_left() -> None:
    assert list(in_forks(remember, [(1,), (2,), (3,)])) == [[1], [2], [3]]
    assert SEEN == []


@pytest.mark.parametrize(("end", "value"), [(os._exit, 3), (signal.raise_signal, signal.SIGINT)])
def test_a_fork_that_ends_early_is_reported_and_not_waited_for(end: Callable[[int], None], value: int) -> None:
    with pytest.raises(ProcessEnded, match="ended its process"):
        forked(end, value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(UserError("here", "is wrong"), UserError, "here: is wrong"), (Unsendable("lost"), ProcessEnded, "Unsendable: lost")],
)
def test_an_exception_is_raised_here(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        forked(own, error)


def test_a_process_of_several_threads_forks_nothing_itself() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert alone(os.getppid, __name__) == os.getpid()
    finally:
        done.set()
        thread.join()
    assert alone(os.getpid, __name__) == os.getpid()
