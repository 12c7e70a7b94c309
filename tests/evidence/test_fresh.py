"""Fresh processes: nothing that one run leaves in memory is found by another."""

import os
import signal
import sys
from dataclasses import replace

import pytest
from cells import SHIPPED

from fedsim.errors import UserError
from fedsim.evidence.check.subject import Subject, subject
from fedsim.evidence.fresh import ProcessEnded, forked, in_fresh_processes
from fedsim.plugins.registry import lookup

SEEN: list[int] = []


def remember(value: int) -> list[int]:
    SEEN.append(value)
    return SEEN


def packages() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}


def imports(subject: Subject) -> set[str]:
    before = packages()
    subject.train()
    return packages() - before


def mistaken(where: str) -> None:
    raise UserError(where, "is wrong")


def end(code: int) -> None:
    os._exit(code)


def test_results_come_in_order_and_no_process_finds_what_another_one_left() -> None:
    assert list(in_fresh_processes(remember, [(1,), (2,), (3,)], __name__)) == [[1], [2], [3]]
    assert SEEN == []


def test_a_fork_leaves_this_process_as_it_is() -> None:
    assert forked(remember, 4) == [4]
    assert SEEN == []


def test_a_process_that_ends_early_is_reported_and_not_waited_for() -> None:
    with pytest.raises(ProcessEnded, match="exit code 3"):
        list(in_fresh_processes(end, [(3,)], __name__))
    with pytest.raises(ProcessEnded, match="ended its process"):
        forked(end, 3)


def test_an_exception_is_raised_here_and_a_users_mistake_as_it_is() -> None:
    with pytest.raises(ProcessEnded, match="TypeError"):
        list(in_fresh_processes(remember, [()], __name__))
    with pytest.raises(UserError, match="here: is wrong"):
        list(in_fresh_processes(mistaken, [("here",)], __name__))
    with pytest.raises(TypeError):
        forked(remember)


def test_an_interruption_ends_a_fresh_process_without_a_traceback() -> None:
    with pytest.raises(ProcessEnded, match="ended with exit code -2"):
        list(in_fresh_processes(signal.raise_signal, [(signal.SIGINT,)], __name__))


@pytest.mark.slow
def test_a_fresh_process_imports_no_package_anew_for_a_shipped_method() -> None:
    private = [cls for cls in map(lookup, SHIPPED) if cls.private]
    subjects = [replace(subject(cls.name, [], cls.units[0], cls.trusts[0], quick=True)) for cls in private]
    for cls, found in zip(private, in_fresh_processes(imports, [(each,) for each in subjects], __name__), strict=True):
        assert found == set(), cls.name
