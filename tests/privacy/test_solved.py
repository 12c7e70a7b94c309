import json
import shutil
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.solved import Mechanisms, Solution, Solver, kept

revision = import_module("fedsim.privacy.counted_by")
QUESTION: tuple[float, float, Mechanisms] = (1.0, 1e-4, (Mechanism(1.0, 0.2, 60),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    return tmp_path / "plans"


def counting(answers: list[Solution]) -> tuple[list[float], Solver]:
    solved: list[float] = []

    def solve(epsilon: float, delta: float, mechanisms: Mechanisms) -> Solution:
        solved.append(epsilon)
        return answers[len(solved) - 1]

    return solved, solve


@pytest.mark.parametrize("other", [(4.0, *QUESTION[1:]), (1.0, 1e-5, QUESTION[2]), (*QUESTION[:2], (Mechanism(1.0, 0.2, 61),))])
def test_a_question_is_solved_once_and_another_one_anew(other: tuple[float, float, Mechanisms], folder: Path) -> None:
    solved, solve = counting([(3.1, 0.9995, "prv"), (1.2, 0.9999, "rdp")])
    assert kept(solve, *QUESTION) == kept(solve, *QUESTION) == (3.1, 0.9995, "prv")
    assert kept(solve, *other) == (1.2, 0.9999, "rdp")
    assert solved == [1.0, other[0]]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "[3.1, 0.9995]",
        '[3.1, 1.2, "prv"]',
        '[0.0, 0.9, "prv"]',
        '["3.1", 0.9, "prv"]',
        '[NaN, 0.9, "prv"]',
        '[3.1, 0.9, "mine"]',
    ],
)
def test_a_file_that_says_what_no_solution_can_is_replaced(folder: Path, text: str) -> None:
    solved, solve = counting([(3.1, 0.9995, "prv")] * 2)
    kept(solve, *QUESTION)
    (path,) = folder.iterdir()
    path.write_text(text)
    assert kept(solve, *QUESTION) == (3.1, 0.9995, "prv")
    assert len(solved) == 2
    assert json.loads(path.read_text()) == [3.1, 0.9995, "prv"]


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    solved, solve = counting([(3.1, 0.9995, "prv")] * 2)
    assert kept(solve, *QUESTION) == kept(solve, *QUESTION)
    assert len(solved) == 2


def test_what_other_code_solved_is_solved_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, solve = counting([(3.1, 0.9995, "prv"), (3.2, 0.9995, "prv")])
    kept(solve, *QUESTION)
    monkeypatch.setattr("fedsim.privacy.solved.counted_by", lambda: "fedsim of another day")
    assert kept(solve, *QUESTION) == (3.2, 0.9995, "prv")


@pytest.mark.parametrize("name", ["plan.py", "ledger.py", "accountant.py"])
def test_code_that_plans_or_counts_is_of_the_revision_to_the_last_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(Path(revision.__file__).parent, tmp_path / "privacy")
    before = revision.counted_by.__wrapped__()
    monkeypatch.setattr(revision, "__file__", str(copy / "counted_by.py"))
    assert revision.counted_by.__wrapped__() == before
    with (copy / name).open("a") as file:
        file.write("\n")
    assert revision.counted_by.__wrapped__() != before


def test_the_revision_names_the_packages_that_count() -> None:
    for package in ("opacus", "numpy", "scipy"):
        assert f", {package} {version(package)}" in revision.counted_by()
