import json
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Solution, solved

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


@pytest.mark.parametrize("text", ["", "{}", '[3.1, 1.2, "prv"]', '[NaN, 0.9, "prv"]'])
def test_a_file_that_says_what_no_solution_can_is_replaced(folder: Path, text: str) -> None:
    first = fresh(*QUESTION)
    (path,) = folder.iterdir()
    path.write_text(text)
    assert fresh(*QUESTION) == first
    assert json.loads(path.read_text()) == list(first)


def test_a_target_that_no_noise_reaches_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="is too small to account for"):
        fresh(1e-9, *QUESTION[1:])
