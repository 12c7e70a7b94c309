"""External samples are evaluated like any method, and their epsilon is stated by their author."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import NODES
from streams import seeded

import fedsim
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import synthesise
from fedsim.grid.read import load_grid
from fedsim.methods.products import FiniteRows, shortened
from fedsim.runs.prepare import prepare
from fedsim.seeds import Seeds

SMALL: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "clients": 4,
    "evaluation": {"per_class": 40},
}
GRID = """dataset: {name: digits, limit: 200}
alpha: [0.1, 1.0]
epsilon: [1, 4, .inf]
algorithms:
- {rows: there/mine.npz, epsilon: 3.1, delta: 1e-4, unit: example, trust: aggregate}
"""
STATED: dict[str, Any] = {
    "delta": 1e-4,
    "unit": "example",
    "trust": "aggregate",
}
"""What an author's epsilon holds for: the defaults of a grid."""


def write(folder: Path, **changed: Any) -> Path:
    """Write a grid file and external samples; a ``changed`` array of None is left out."""
    there = folder / "there"
    there.mkdir(exist_ok=True)
    rows = {
        "x": np.random.default_rng(0).standard_normal((100, 64), dtype=np.float32),
        "y": np.arange(100) % 10,
    }
    arrays = {name: values for name, values in (rows | changed).items() if values is not None}
    np.savez(there / "mine.npz", **arrays)
    grid = folder / "g.yaml"
    grid.write_text(GRID)
    return grid


def test_samples_of_one_run_are_external_samples_of_another(folder: Path) -> None:
    made = fedsim.bench(
        SMALL | {"algorithms": ["dp-gaussian"], "epsilon": 4.0},
        out="made",
    )
    made.synth(Path("rows.npz"), per_class=50)
    theirs = {"rows": "rows.npz", "label": "theirs", "epsilon": 4.0, "claim": "heuristic"} | STATED
    grid = SMALL | {"algorithms": [theirs], "alpha": [0.1, 1.0], "privacy": {"noise": "secret"}}
    run = fedsim.bench(grid | {"epsilon": [1.0, 8.0]}, out="given")
    one, other = run.rows.to_dict("records")
    assert one["label"] == "theirs"
    assert one["status"] == "ok"
    assert one["epsilon_target"] == 4.0
    assert one["claim"] == "heuristic"
    accuracy = one["balanced_accuracy"]
    assert accuracy == other["balanced_accuracy"]
    assert accuracy == pytest.approx(made.rows["balanced_accuracy"][0], abs=0.1)
    for name in ("epsilon_spent", "mechanisms", "accountant", "noise"):
        assert not one[name] or math.isnan(one[name])
    assert run.verify().passed
    assert "as stated by the author, not verified" in run.statement()
    with pytest.raises(UserError, match="may be released: 2 of 2: its method adds no noise"):
        run.release(Path("out"), cell=one["cell_id"])
    with pytest.raises(UserError, match="give at most 50"):
        run.synth(
            Path("again.npz"),
            cell=one["cell_id"],
            per_class=51,
        )
    lines = Path("given/trainings.jsonl").read_text()
    fedsim.bench(grid | {"epsilon": [2.0]}, out="given")
    assert Path("given/trainings.jsonl").read_text() == lines


def test_external_samples_are_one_cell_per_partition(folder: Path) -> None:
    prepared = prepare(load_grid(write(folder)), NODES)
    for trial, alpha in zip(prepared.trials, (0.1, 1.0), strict=True):
        assert trial.cell.label == "mine"
        assert trial.cell.epsilon == 3.1
        assert trial.cell.alpha == alpha
        assert trial.plan is None
    assert prepared.repeated == 1


def cell_ids(grid: Path) -> set[str]:
    prepared = prepare(load_grid(grid), NODES)
    return {trial.cell.cell_id for trial in prepared.trials}


def test_ids_of_external_samples_follow_their_file(folder: Path) -> None:
    first = cell_ids(write(folder))
    assert cell_ids(write(folder)) == first
    changed = write(folder, y=np.arange(100)[::-1] % 10)
    assert first.isdisjoint(cell_ids(changed))


WRONG = {
    "60 dimensions": {"x": np.zeros((100, 60))},
    "NaN": {"x": np.full((100, 64), np.nan)},
    "class 9 has fewer than two rows": {"y": np.arange(100) % 9},
    "11 classes": {"y": np.arange(100) % 11},
    "cannot be read": {"y": None},
    "y holds names, such as 'a'; give the numbers 0 to 9": {"y": np.array(list("abcdefghij") * 10)},
    "y has dtype float64; give the numbers 0 to 9": {"y": np.arange(100) % 10 + 0.0},
}


@pytest.mark.parametrize("words", WRONG)
def test_file_without_rows_of_the_data_set_is_one_message(words: str, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"g.yaml:4: algorithms.*there/mine.npz.*{words}"):
        fedsim.bench(write(folder, **WRONG[words]), out="run")
    assert not Path("run").exists()


def entry(folder: Path, **stated: Any) -> dict[str, Any]:
    """Return a grid of external samples with what their author states."""
    write(folder)
    return SMALL | {"algorithms": [{"rows": "there/mine.npz", **stated}]}


def refusal(grid: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        fedsim.bench(grid, out="run", in_process=True)
    assert not Path("run").exists()
    return str(error.value)


@pytest.mark.parametrize("missing", STATED)
def test_a_finite_epsilon_needs_its_delta_unit_and_trust(missing: str, folder: Path) -> None:
    stated = {name: value for name, value in STATED.items() if name != missing}
    message = refusal(entry(folder, epsilon=1e-300, **stated))
    wanted = f"{missing}: {STATED[missing]}"
    assert "algorithms[0]: has epsilon: 1e-300, but does not say" in message
    assert f"the grid's {wanted}; if it does, add {wanted} here" in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("delta", 1e-5, "has delta: 1e-05, but the grid has delta: 0.0001"),
        ("unit", "client", "has unit: client, but the grid has unit: example"),
        (
            "unit",
            {"column": "patient"},
            'has unit: {"column": "patient"}, but the grid has unit: example',
        ),
        ("trust", "silo", "has trust: silo, but the grid has trust: aggregate"),
    ],
)
def test_what_an_author_states_must_be_the_grids(
    name: str, value: Any, words: str, folder: Path
) -> None:
    assert words in refusal(entry(folder, epsilon=2.0, **STATED | {name: value}))


def test_what_differs_from_the_grid_comes_before_what_is_missing(folder: Path) -> None:
    message = refusal(entry(folder, epsilon=2.0, unit="client"))
    assert "has unit: client, but the grid has unit: example" in message
    assert "trust" not in message.partition(";")[0]


def test_samples_without_an_epsilon_need_no_statement(folder: Path) -> None:
    run = fedsim.bench(entry(folder), out="run", in_process=True)
    assert run.rows["epsilon_target"].tolist() == [np.inf]
    assert "nothing of them may be released as private" in run.statement()


def test_external_samples_cannot_be_tuned(folder: Path) -> None:
    grid = entry(folder, epsilon=2.0, **STATED)
    message = refusal(grid | {"tune": {"params": {"claim": ["stated", "heuristic"]}}})
    assert "external samples are not trained" in message


def test_no_output_calls_an_external_epsilon_proved(folder: Path) -> None:
    grid = entry(folder, epsilon=1e-300, **STATED) | {"epsilon": [2.0]}
    grid["algorithms"].append("dp-gaussian")
    run = fedsim.bench(grid, out="run", in_process=True)
    words = "as stated by the author, not verified"
    board = fedsim.board([Path("run")])
    assert board.frame["method"].tolist() == ["dp-gaussian"]
    statement = run.statement(cell=run.rows.query("label == 'mine'")["cell_id"].item())
    for text in (str(board), str(run.table()), run.table().text("latex"), statement):
        assert words in text
    assert "proved" not in statement
    page = Path("run/report.html").read_text()
    assert words in page
    assert "unverified" in page


def test_no_finite_row_trains_the_probe_twice() -> None:
    rows = torch.randn(
        400,
        64,
        generator=seeded(0),
    )
    made = shortened(FiniteRows(rows, torch.arange(400) % 10))
    x, labels = synthesise(made, 10, 50, Seeds(0))
    assert np.bincount(labels).tolist() == [40] * 10
    assert len(np.unique(x, axis=0)) == 400
