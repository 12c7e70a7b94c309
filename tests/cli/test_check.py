"""``fedsim check``: its table, its exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Done

BROKEN = Path(__file__).parents[1] / "broken"
Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(command: Callable[..., Done]) -> Check:
    """Runs the command in this process; returns its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = command("check", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_file_that_fails_is_told_with_reason_and_fix_in_100_columns(check: Check) -> None:
    code, out, _ = check(f"{BROKEN}/clips.py:UnclippedPart", "--trust", "silo", "--quick")
    assert code == 1
    line, _, table = out.partition("\n")
    assert line.endswith("clips.py:UnclippedPart: 11 of 12 checks passed (example, silo)")
    assert max(map(len, table.splitlines())) <= 100
    assert [row.split("│")[0].strip() for row in table.splitlines() if "passed" in row or "failed" in row] == ["sensitivity"]
    assert "prototypes.bias" in table
    assert "fix: clip every unit" in table


def test_a_method_that_ends_the_process_has_not_passed(check: Check) -> None:
    code, table, _ = check("broken.refused:Exits", "--trust", "silo", "--quick")
    assert code == 1
    assert "SystemExit: 0" in table


def test_an_algorithm_that_passes_exits_with_0(check: Check) -> None:
    command = ("dp-gaussian", "--unit", "example", "--trust", "aggregate", "--quick", "--param", "rank=8")
    line = "fedsim check dp-gaussian: 12 of 12 checks passed (example, aggregate)\n"
    assert check(*command) == (0, line, "")
    code, out, _ = check(*command, "--verbose")
    assert code == 0
    assert out.startswith(line)
    assert "pairs of neighbours" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.py:Method"], "there is no file"),
        (["fedhypevaee"], "did you mean 'fedhypevae'"),
        (["fedhypevae-sites", "--unit", "client"], "does not support 'client'"),
        (["dp-gaussian", "--param", "rankk=3"], "--param rankk"),
        ([f"{BROKEN}/refused.py:CannotBePlanned"], ": ZeroDivisionError: division by zero"),
        ([f"{BROKEN}/noise.py:ScoreWithoutNoise"], "a release is called 'score'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(check: Check, arguments: list[str], words: str) -> None:
    code, out, err = check(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
