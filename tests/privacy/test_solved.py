import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.solved import Solution, solved

QUESTION = 1.0, 1e-4, (Mechanism(1.0, 0.2, 60),)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    return tmp_path / "plans"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows with every use of the accountant."""
    uses, count = list[float](), accountant.epsilon
    monkeypatch.setattr(accountant, "epsilon", lambda mechanisms, delta: uses.append(delta) or count(mechanisms, delta))  # type: ignore[func-returns-value]
    return uses


def fresh(*question: object) -> Solution:
    """As by another process."""
    solved.cache_clear()
    return solved(*question)  # type: ignore[arg-type]


def test_a_question_is_solved_once_a_machine_and_another_one_anew(folder: Path, counted: list[float]) -> None:
    first, uses = fresh(*QUESTION), len(counted)
    assert fresh(*QUESTION) == first
    assert len(counted) == uses
    assert fresh(1.0, 1e-5, QUESTION[2])[0] > first[0]
    assert len(counted) > uses
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[3.1, 0.9995]", '[3.1, 1.2, "prv"]', '[0.0, 0.9, "prv"]', '[NaN, 0.9, "prv"]', '[3.1, 0.9, "mine"]']
)
def test_a_file_that_says_what_no_solution_can_is_replaced(folder: Path, text: str) -> None:
    first = fresh(*QUESTION)
    (path,) = folder.iterdir()
    path.write_text(text)
    assert fresh(*QUESTION) == first
    assert json.loads(path.read_text()) == list(first)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    assert fresh(*QUESTION) == fresh(*QUESTION)


def test_what_other_code_solved_is_solved_anew(folder: Path, counted: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(*QUESTION)
    uses = len(counted)
    monkeypatch.setattr("fedsim.privacy.solved.counted_by", lambda: "fedsim of another day")
    fresh(*QUESTION)
    assert len(counted) > uses


def test_a_target_that_no_noise_reaches_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="is too small to account for"):
        fresh(1e-9, *QUESTION[1:])


@pytest.mark.parametrize("name", ["plan.py", "ledger.py", "accountant.py"])
def test_code_that_plans_or_counts_is_of_the_revision_to_the_last_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision, copy = accountant.counted_by.__wrapped__, shutil.copytree(Path(accountant.__file__).parent, tmp_path / "privacy")
    before = revision()
    assert all(f", {package} {version(package)}" in before for package in ("opacus", "numpy", "scipy"))
    monkeypatch.setattr(accountant, "__file__", str(copy / "accountant.py"))
    assert revision() == before
    with (copy / name).open("a") as file:
        file.write("\n")
    assert revision() != before
