"""Makes up results as a bench would write them, and joins those of cells that ran here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import EvaluationResult, evaluate_cell
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.grid.models import Published
from fedsim.json_lines import dump
from fedsim.results.columns import COLUMNS, Row
from fedsim.results.join import Entry, RunResults, claim_of
from fedsim.results.lines import (
    RowError,
    evaluation_line,
    keep_state,
    reference_line,
    training_line,
)
from fedsim.results.store import ResultStore, RunFolder
from fedsim.runs.prepare import Prepared
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Outcome, Trial, run_trial

NOISE = {"sigma": 4.2, "clip": 1.0, "sensitivity": 1.0}
"""The noise in the plan of a made-up result."""
ERROR = {
    "type": "ValueError",
    "message": "rows hold NaN",
    "traceback": "Traceback (most recent call last):\nValueError",
}


def make_row(*, plan: Mapping[str, Any] = NOISE, refuted: bool = False, **values: Any) -> Row:
    """Return a result; everything has a default."""
    epsilon = values.get("epsilon_target", 1.0)
    columns = dict.fromkeys(COLUMNS) | {
        "cell_id": "a",
        "status": "ok",
        "algorithm": values.get("label", "fedhypevae"),
        "label": "fedhypevae",
        "params": {"rounds": 40},
        "yields": "generator",
        "dataset": "digits",
        "dataset_hash": "abcd",
        "scheme": "dirichlet",
        "alpha": 0.1,
        "clients": 10,
        "partition_hash": "ef01",
        "seed": 0,
        "claim": "none",
        "evaluation": {},
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
        "train_seconds": 4.2,
        "versions": {"fedsim": "0.1.0"},
    }
    if epsilon is not None:
        columns |= {
            "epsilon_target": epsilon,
            "epsilon_spent": epsilon * 0.995,
            "delta": 1e-4,
            "unit": "example",
            "relation": "add-or-remove-one",
            "trust": "aggregate",
            "scope": "joint",
            "accountant": "prv",
            "noise": "seeded",
            "noise_at": "sum",
        }
        if math.isfinite(epsilon):
            mechanism = {"sample_rate": 0.08, "count": 400, "release": "dp-sgd"}
            columns["mechanisms"] = [{"noise_multiplier": 4.2 / epsilon, **mechanism}]
            columns["claim"] = "proved"
    columns |= values
    assert set(columns) == set(COLUMNS)
    if columns["balanced_accuracy"] is not None and columns["ceiling_balanced_accuracy"]:
        share = columns["balanced_accuracy"] / columns["ceiling_balanced_accuracy"]
        columns["share_of_ceiling"] = share
    if epsilon is None:
        return Row(columns)
    names = ("epsilon_target", "delta", "trust", "scope", "claim", "selection")
    plan = {name: columns[name] for name in names} | {**plan, "releases": []}
    return Row(columns, plan, refuted or columns["status"] == "refuted")


def make_failed(**values: Any) -> Row:
    """Return a failed result."""
    missing = (
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "epsilon_spent",
        "accountant",
        "uplink_bytes",
        "seconds",
        "train_seconds",
    )
    failure = {"status": "failed", "error": ERROR}
    return make_row(**{**dict.fromkeys(missing), **failure, **values})


def make_published(**values: Any) -> Published:
    """Return a published number of balanced accuracy at ε = 1; everything has a default."""
    keys = {
        "published": 0.91,
        "measure": "balanced_accuracy",
        "epsilon": 1,
        "source": "Author 2025, Table 2",
        "label": "DP-CVAE",
    }
    return Published.model_validate(keys | values)


def make_rounds(
    cell_id: str, rounds: int = 8, start: int = 0, **values: Any
) -> list[dict[str, Any]]:
    """Return the records of a sound training; a list has one value per round."""
    sound = {
        "signal_norm": 100.0,
        "noise_norm": 200.0,
        "kl": 2.0,
        "clipped_fraction": 0.8,
        "cross_client_mmd": 0.02,
        "loss_reconstruction": -0.9,
        "loss_kl": 0.01,
        "loss_kernel": -0.02,
        "gradient_norm_quantiles": (0.5, 1.0, 1.5, 2.0, 2.5),
        "generated_decoder_norm": 8.0,
        "generated_prior_norm": 1.0,
        "parameter_norm": 7.7,
    } | values
    records = []
    for t in range(rounds):
        record = {"cell_id": cell_id, "round": start + t, "release": "dp-sgd"}
        for name, value in sound.items():
            record[name] = value[t] if isinstance(value, list) else value
        records.append(record)
    return records


def changed(row: Row, **values: Any) -> Row:
    """Return a result with other values."""
    return Row({**row.values, **values}, row.plan, row.refuted)


def values_of(row: Row, *without: str) -> dict[str, Any]:
    """Return the columns of a result, without some."""
    return {name: value for name, value in row.values.items() if name not in without}


def parts_of(row: Row) -> dict[str, dict[str, Any]]:
    """Return the values of a result's columns as the lines have them; see ``Column.path``."""
    parts: dict[str, dict[str, Any]] = {}
    for name, column in COLUMNS.items():
        *groups, key = column.path.split(".")
        part: dict[str, Any] = parts
        for group in groups:
            part = part.setdefault(group, {})
        part[key] = row.values[name]
    return parts


def add_rows(folder: Path, *rows: Row) -> None:
    """Write the result lines that give these results, and the cells of a manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    cells = {cell["cell_id"]: cell for cell in manifest.get("cells", [])}
    for row in rows:
        key = f"t-{row.cell_id}"
        ceiling = f"ceiling-{key}"
        local_only = f"local-only-{key}"
        entry = Entry(row.cell_id, key, row.label, ceiling, local_only)
        cells[row.cell_id] = asdict(entry)
        parts = parts_of(row)
        training = training_of(row, key)
        add_lines(folder / "trainings.jsonl", [training])
        if row.status != "failed":
            add_lines(folder / "evaluations.jsonl", [evaluation_of_row(row, key)])
        references = []
        if row.ceiling_balanced_accuracy:
            references.append({"reference": ceiling, **parts["ceiling"]})
        if row.local_only_balanced_accuracy:
            references.append({"reference": local_only, **parts["local_only"], "clients": []})
        add_lines(folder / "references.jsonl", references)
        refuted = row.status == "refuted"
        if row.audit_pairs or refuted:
            claim = claim_of(training["cell"])
            audit = {
                "audit": key,
                "claim": claim,
                "refuted": refuted,
                **parts["audit"],
            }
            add_lines(folder / "audits.jsonl", [audit])
    path.write_text(json.dumps(manifest | {"cells": list(cells.values())}))


def training_of(row: Row, key: str) -> dict[str, Any]:
    """Return the line of a result's training."""
    parts = parts_of(row)
    cell = parts["cell"]
    cell["evaluation"] |= row.evaluation or {}
    for name in ("cell_id", "label", "delta", "unit", "trust", "noise"):
        cell[name] = row.values[name]
    cell |= {"epsilon": row.epsilon_target, "unit_column": row.unit, "tuning": None}
    trials = None
    if row.tuning:
        cell["tuning"] = {key: row.tuning[key] for key in row.tuning if key != "chosen"}
        trials = cell["tuning"].pop("trained")
    ledger = None
    if row.plan:
        ledger = parts["ledger"] | {"unaccounted": ""}
    error = None
    if row.status == "failed":
        error = row.error
    if row.status == "unaccounted":
        ledger = parts["ledger"] | {"unaccounted": row.error["message"]}
    return parts["training"] | {
        "training_id": key,
        "error": error,
        "cell": cell,
        "plan": row.plan or None,
        "ledger": ledger,
        "task": {"classes": round(1 / (row.chance or 0.1))},
        "train_groups": row.train_groups,
        "trials": trials,
    }


def evaluation_of_row(row: Row, key: str) -> dict[str, Any]:
    """Return the line of a result's evaluation."""
    return parts_of(row)["evaluation"] | {
        "cell_id": row.cell_id,
        "training_id": key,
        "error": None,
        "seconds": row.evaluation_seconds or 0.0,
        "scores": {name: row.scores[name] for name in row.scores if name != "share_of_ceiling"},
        "evaluation": row.evaluation or {},
        "clients": [],
    }


def add_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file."""
    if path.name == "rounds.jsonl":
        lines = [{"training_id": f"t-{line.get('cell_id')}", **line} for line in lines]
    texts = [f"{dump(line)}\n" for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    if texts:
        with path.open("a") as file:
            file.writelines(texts)


def joined(trial: Trial, *ended: Any) -> Row:
    """Return the result of a cell, from what its lines are made of; see :func:`lines_of`."""
    row = lines_of(trial, *ended).row(entry_of(trial), evaluated=len(ended) > 1)
    assert row is not None
    return row


def entry_of(trial: Trial) -> Entry:
    """Return a cell with the keys of its lines."""
    cell = trial.cell
    return Entry(
        cell.cell_id,
        cell.training_id,
        cell.label,
        "ceiling",
        "local-only",
    )


def lines_of(
    trial: Trial,
    training: Outcome | RowError,
    evaluation: EvaluationResult | RowError | None = None,
    ceiling: Ceiling | None = None,
    local_only: LocalOnly | None = None,
) -> RunResults:
    """Return the lines of a cell."""
    evaluations = {}
    if evaluation is not None:
        evaluations[trial.cell.cell_id] = evaluation_line(
            trial,
            evaluation,
            1.0,
        )
    references = {}
    if ceiling is not None:
        references["ceiling"] = reference_line("ceiling", ceiling)
    if local_only is not None:
        references["local-only"] = reference_line("local-only", local_only)
    return RunResults(
        RunFolder(Path()),
        {
            trial.cell.training_id: training_line(
                trial,
                training,
                {"fedsim": "0"},
            )
        },
        evaluations,
        references,
    )


def outcome_of(trial: Trial, data: Embeddings) -> Outcome:
    """Train a cell in this process and return the outcome."""
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome


def ran(prepared: Prepared, trial: Trial) -> tuple[Outcome, EvaluationResult]:
    """Train and evaluate a cell in this process."""
    data = prepared.data[trial.data_key]
    outcome = outcome_of(trial, data)
    return outcome, evaluate_cell(trial, outcome.state, data)


def as_planned(trial: Trial, **changes: Any) -> Outcome:
    """Return the outcome of a training that did what was planned, without its tensors."""
    plan = trial.plan
    assert plan is not None
    algorithm = build_algorithm(
        trial.cell.algorithm,
        trial.cell.params,
        trial.task,
    )
    spent = (plan.epsilon_reached, plan.accountant, plan.mechanisms)
    outcome = Outcome(*spent, "sum", "", 0, 0, 0, 1.0, {})
    if algorithm.noise_at_clients():
        outcome = replace(outcome, noise_at="clients")
    return replace(outcome, **changes)


def kept(folder: Path, trial: Trial, outcome: Outcome, class_names: Sequence[str] = ()) -> None:
    """Write the tensors and the line of a training, as a bench does."""
    store = ResultStore(folder)
    training = trial.cell.training_id
    state = keep_state(store.folder.state(training), outcome.state)
    store.append(
        "trainings",
        [
            training_line(
                trial,
                outcome,
                {"fedsim": "0"},
                class_names,
                state,
            )
        ],
    )
