from collections.abc import Callable
from pathlib import Path

from benches import Done

Fedsim = Callable[..., Done]


def test_a_new_method_from_nowhere_is_a_mistake(tmp_path: Path, fedsim: Fedsim) -> None:
    done = fedsim("new", "mine", "--from", "no-such-method")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--from: unknown algorithm 'no-such-method'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_algorithms_are_listed_and_one_is_shown_in_full(fedsim: Fedsim) -> None:
    listed, shown = fedsim("algorithms"), fedsim("algorithms", "fedhypevae")
    assert (listed.returncode, shown.returncode) == (0, 0)
    assert "weight-noise" in listed.stdout
    assert "dimension of the client" in shown.stdout


def test_an_audit_of_a_run_that_is_nowhere_says_so(tmp_path: Path, fedsim: Fedsim) -> None:
    done = fedsim("audit", "runs/nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedsim: runs/nosuch: there is no such run folder; give one")
    assert list(tmp_path.iterdir()) == []
