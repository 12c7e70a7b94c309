"""Fresh processes: nothing that one run leaves in memory is found by another."""

import os
import signal

import pytest

from fedsim.simulation.fresh import ProcessEnded, forked, in_fresh_processes

SEEN: list[int] = []


def remember(value: int) -> list[int]:
    SEEN.append(value)
    return SEEN


def end(code: int) -> None:
    os._exit(code)


def test_results_come_in_order_and_no_process_finds_what_another_one_left() -> None:
    assert list(in_fresh_processes(remember, [(1,), (2,), (3,)], __name__)) == [[1], [2], [3]]
    assert SEEN == []


def test_a_fork_leaves_this_process_as_it_is() -> None:
    assert forked(remember, 4) == [4]
    assert SEEN == []


def test_a_process_that_ends_early_is_told_and_not_waited_for() -> None:
    with pytest.raises(ProcessEnded, match="exit code 3"):
        list(in_fresh_processes(end, [(3,)], __name__))
    with pytest.raises(ProcessEnded, match="ended its process"):
        forked(end, 3)


def test_an_exception_is_told() -> None:
    with pytest.raises(ProcessEnded, match="TypeError"):
        list(in_fresh_processes(remember, [()], __name__))
    with pytest.raises(TypeError):
        forked(remember)


def test_an_interruption_ends_a_fresh_process_without_a_traceback() -> None:
    with pytest.raises(ProcessEnded, match="ended with exit code -2"):
        list(in_fresh_processes(signal.raise_signal, [(signal.SIGINT,)], __name__))
