"""Made-up rows of a grid, as a real bench would write them; and the row of a cell that ran here."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.evaluation.judge import Judgement, judgement_of
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.json_lines import dump
from fedsim.results.run import Entry, Lines
from fedsim.results.result_lines import RowError, judgement_line, reference_line, training_line
from fedsim.results.columns import Result
from fedsim.results.store import ResultStore
from fedsim.results.trained import keep_state
from fedsim.runs.prepare import Prepared
from fedsim.training.trial import Outcome, Trial, run_trial

ERROR = {"type": "ValueError", "message": "rows hold NaN", "traceback": "Traceback (most recent call last):\nValueError"}


def make_row(**fields: Any) -> Row:
    """One row; everything has a default."""
    epsilon = fields.get("epsilon_target", 1.0)
    private = epsilon is not None
    base = {
        "cell_id": "a",
        "status": "ok",
        "algorithm": fields.get("label", "fedhypevae"),
        "label": "fedhypevae",
        "params": {"rounds": 40},
        "dataset": "digits",
        "dataset_hash": "abcd",
        "scheme": "dirichlet",
        "alpha": 0.1,
        "clients": 10,
        "partition_hash": "ef01",
        "seed": 0,
        "epsilon_target": epsilon,
        "epsilon_spent": epsilon * 0.995 if private else None,
        "delta": 1e-4 if private else None,
        "unit": "example" if private else None,
        "trust": "aggregate" if private else None,
        "scope": "joint" if private else None,
        "claim": "proved" if private and math.isfinite(epsilon) else "none",
        "accountant": "prv" if private else None,
        "sigma": 4.2 / epsilon if private else None,
        "sample_rate": 0.08 if private else None,
        "steps": 400 if private else None,
        "clip": 1.0 if private else None,
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.5,
        "ceiling_balanced_accuracy": 0.953,
        "local_only_balanced_accuracy": 0.38,
        "chance": 0.1,
        "uplink_bytes": 12_345_678,
        "downlink_bytes": 23_456_789,
        "parameters": 1_234,
        "seconds": 4.2,
        "versions": {"fedsim": "0.1.0"},
    }
    return Row.model_validate(base | fields)


def make_failed(**fields: Any) -> Row:
    """One failed row."""
    none = dict.fromkeys(["accuracy", "balanced_accuracy", "macro_f1", "epsilon_spent", "accountant", "uplink_bytes", "seconds"])
    return make_row(**none | {"status": "failed", "error": ERROR} | fields)


def add_rows(folder: Path, *rows: Row) -> None:
    """Write rows into a folder without result lines, which is then read from them alone."""
    add_lines(folder / "results.jsonl", (row.model_dump() for row in rows))


def add_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file."""
    texts = [f"{dump(line)}\n" for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    if texts:
        with path.open("a") as file:
            file.writelines(texts)


def joined(
    trial: Trial,
    training: Outcome | RowError,
    judgement: Judgement | RowError | None = None,
    ceiling: Ceiling | None = None,
    local_only: LocalOnly | None = None,
) -> Row:
    """The row that the lines of a cell give."""
    lines = lines_of(trial, training, judgement, ceiling, local_only)
    row = lines.trained_row(Entry(trial.cell.cell_id, trial.cell.training_id, trial.cell.label, "ceiling", "local-only"))
    return Row.from_json(row.to_json())


def lines_of(
    trial: Trial,
    training: Outcome | RowError,
    judgement: Judgement | RowError | None = None,
    ceiling: Ceiling | None = None,
    local_only: LocalOnly | None = None,
) -> Lines:
    """The lines of a cell."""
    references = {kind: reference_line(kind, value) for kind, value in (("ceiling", ceiling), ("local-only", local_only)) if value}
    return Lines(
        {trial.cell.training_id: training_line(trial, training, {"fedsim": "0"})},
        {} if judgement is None else {trial.cell.cell_id: judgement_line(trial, judgement, 1.0)},
        references,
    )


def ran(prepared: Prepared, trial: Trial) -> tuple[Outcome, Judgement]:
    """A cell, trained and judged in this process."""
    data = prepared.data[trial.data_key]
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome, judgement_of(trial, outcome.state, data)


def kept(folder: Path, trial: Trial, outcome: Outcome, class_names: Sequence[str] = ()) -> None:
    """Write what a training left, its tensors and its line, as a bench would."""
    store, training = ResultStore(folder), trial.cell.training_id
    state = keep_state(store.folder.state(training), outcome.state)
    store.append("trainings", [training_line(trial, outcome, {"fedsim": "0"}, class_names, state)])


def clients(trial: Trial, *ended: Any) -> list[dict[str, Any]]:
    """The lines of a cell's clients; arguments as of :func:`joined`."""
    lines = lines_of(trial, *ended)
    return lines.clients([Entry(trial.cell.cell_id, trial.cell.training_id, trial.cell.label, "ceiling", "local-only")])


def outcome_and_plan(prepared: Prepared) -> tuple[Outcome, Any]:
    """The only cell's training, and its plan."""
    (trial,) = prepared.trials
    return ran(prepared, trial)[0], trial.plan


def score_of(prepared: Prepared) -> float:
    """The balanced accuracy of the only cell."""
    (trial,) = prepared.trials
    return ran(prepared, trial)[1].scores.balanced_accuracy
