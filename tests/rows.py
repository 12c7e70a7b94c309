"""Made-up rows of a grid, as a real bench would write them; and the row of a cell that ran here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.evaluation.evaluate import EvaluationResult, evaluate_cell
from fedsim.evaluation.scores import Ceiling, LocalOnly
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

AUDIT = ("epsilon_lower", "pairs", "canary_ratio", "params")
CELL = (
    *(
        "source",
        "algorithm",
        "label",
        "params",
        "dataset_hash",
        "public",
        "public_hash",
        "public_licence",
        "clients",
        "seed",
        "noise",
    ),
    *("delta", "unit", "trust"),
)
PLAN = ("epsilon_target", "delta", "trust", "scope", "claim", "selection")
LINE = (
    *(
        "dataset",
        "alpha",
        "yields",
        "train_rows",
        "train_groups",
        "parameters",
        "uplink_bytes",
        "downlink_bytes",
    ),
    *("versions",),
)
"""The columns that an audit, a cell, a plan and the line of a training hold by the same names."""
NOISE = {"sigma": 4.2, "clip": 1.0, "sensitivity": 1.0}
"""What the plan of a made-up row says beside them."""
ERROR = {
    "type": "ValueError",
    "message": "rows hold NaN",
    "traceback": "Traceback (most recent call last):\nValueError",
}


def make_row(*, plan: Mapping[str, Any] = NOISE, **values: Any) -> Row:
    """One row; everything has a default."""
    epsilon = values.get("epsilon_target", 1.0)
    private = epsilon is not None
    noisy = private and math.isfinite(epsilon)
    base = {
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
        "epsilon_target": epsilon,
        "epsilon_spent": epsilon * 0.995 if private else None,
        "delta": 1e-4 if private else None,
        "unit": "example" if private else None,
        "relation": "add-or-remove-one" if private else None,
        "trust": "aggregate" if private else None,
        "scope": "joint" if private else None,
        "claim": "proved" if noisy else "none",
        "accountant": "prv" if private else None,
        "noise": "seeded" if private else None,
        "mechanisms": [
            {
                "noise_multiplier": 4.2 / epsilon,
                "sample_rate": 0.08,
                "count": 400,
                "release": "dp-sgd",
            }
        ]
        if noisy
        else None,
        "noise_at": "sum" if private else None,
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
    made = dict.fromkeys(COLUMNS) | base | values
    assert set(made) == set(COLUMNS)
    if made["balanced_accuracy"] is not None and made["ceiling_balanced_accuracy"]:
        made["share_of_ceiling"] = made["balanced_accuracy"] / made["ceiling_balanced_accuracy"]
    return Row(
        made, {**{name: made[name] for name in PLAN}, **plan, "releases": []} if private else {}
    )


def make_failed(**fields: Any) -> Row:
    """One failed row."""
    none = dict.fromkeys(
        [
            "accuracy",
            "balanced_accuracy",
            "macro_f1",
            "epsilon_spent",
            "accountant",
            "uplink_bytes",
            "train_seconds",
        ]
    )
    return make_row(**none | {"status": "failed", "error": ERROR, "seconds": None} | fields)


def make_rounds(
    cell_id: str, rounds: int = 8, start: int = 0, **values: Any
) -> list[dict[str, Any]]:
    """The round records of a sound training; a value may be a list, one element a round."""
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
    given = [
        {name: value[t] if isinstance(value, list) else value for name, value in sound.items()}
        for t in range(rounds)
    ]
    return [
        {"cell_id": cell_id, "round": start + t, "release": "dp-sgd", **each}
        for t, each in enumerate(given)
    ]


def changed(row: Row, **values: Any) -> Row:
    """A row with other values."""
    return Row({**row.values, **values}, row.plan)


def values_of(row: Row, *without: str) -> dict[str, Any]:
    """The columns of a row, but for some."""
    return {name: value for name, value in row.values.items() if name not in without}


def add_rows(folder: Path, *rows: Row) -> None:
    """Write the result lines that give these rows, and the cells of a manifest."""
    path = folder / "manifest.json"
    if path.exists():
        manifest = json.loads(path.read_text())
    else:
        manifest = {}
    cells = {cell["cell_id"]: cell for cell in manifest.get("cells", [])}
    for row in rows:
        key = f"t-{row.cell_id}"
        references = {
            f"ceiling-{key}": row.ceiling_balanced_accuracy,
            f"local-only-{key}": row.local_only_balanced_accuracy,
        }
        cells[row.cell_id] = {"cell_id": row.cell_id, "label": row.label, "training_id": key}
        cells[row.cell_id] |= dict(zip(("ceiling", "local_only"), references, strict=True))
        training = training_of(row, key)
        add_lines(folder / "trainings.jsonl", [training])
        if row.status == "failed":
            evaluated = []
        else:
            evaluated = [evaluation_of_row(row, key)]
        add_lines(folder / "evaluations.jsonl", evaluated)
        for name, score in references.items():
            scores = {
                "balanced_accuracy": score,
                "accuracy": row.ceiling_accuracy,
                "mean": score,
                "clients": [],
            }
            add_lines(folder / "references.jsonl", [{"reference": name, **scores}] if score else [])
        audit = {name: getattr(row, f"audit_{name}") for name in AUDIT} | {
            "refuted": row.status == "refuted"
        }
        audit |= {"audit": key, "claim": claim_of(training["cell"])}
        add_lines(folder / "audits.jsonl", [audit] if audit["pairs"] or audit["refuted"] else [])
    path.write_text(json.dumps(manifest | {"cells": list(cells.values())}))


def training_of(row: Row, key: str) -> dict[str, Any]:
    """The line of a row's training."""
    cell = {name: getattr(row, name) for name in CELL} | {
        "cell_id": row.cell_id,
        "epsilon": row.epsilon_target,
        "unit_column": row.unit,
    }
    cell |= {
        "partition": {"scheme": row.scheme},
        "evaluation": (row.evaluation or {}) | {"unseen": row.unseen},
    }
    cell["tuning"] = row.tuning and {
        name: value for name, value in row.tuning.items() if name not in ("chosen", "trained")
    }
    ledger = {
        name: getattr(row, name)
        for name in ("epsilon_spent", "accountant", "mechanisms", "noise_at", "counted_by")
    }
    if row.status == "unaccounted":
        ledger["unaccounted"] = row.error["message"]
    else:
        ledger["unaccounted"] = ""
    return {
        "training_id": key,
        "error": row.error if row.status == "failed" else None,
        "cell": cell,
        "plan": row.plan or None,
        "ledger": ledger if row.plan else None,
        "task": {"classes": round(1 / row.chance) if row.chance else 10},
        "partition": row.partition_hash,
        "state": row.generator,
        "trials": row.tuning and row.tuning["trained"],
        "seconds": row.train_seconds,
        **{name: getattr(row, name) for name in LINE},
    }


def evaluation_of_row(row: Row, key: str) -> dict[str, Any]:
    """The line of a row's evaluation."""
    same = {
        name: getattr(row, name)
        for name in ("cell_id", "evaluation_source", "tested", "label_shares")
    }
    scores = {name: score for name, score in row.scores.items() if name != "share_of_ceiling"}
    shown = {
        "training_id": key,
        "error": None,
        "seconds": row.evaluation_seconds or 0.0,
        "recalls": row.recall_per_class,
    }
    return same | shown | {"scores": scores, "evaluation": row.evaluation or {}, "clients": []}


def add_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to a file."""
    if path.name == "rounds.jsonl":
        lines = [{"training_id": f"t-{line.get('cell_id')}", **line} for line in lines]
    texts = [f"{dump(line)}\n" for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    if texts:
        with path.open("a") as file:
            file.writelines(texts)


def joined(
    trial: Trial,
    training: Outcome | RowError,
    evaluation: EvaluationResult | RowError | None = None,
    ceiling: Ceiling | None = None,
    local_only: LocalOnly | None = None,
) -> Row:
    """The row that the lines of a cell give."""
    row = lines_of(trial, training, evaluation, ceiling, local_only).row(
        entry_of(trial), evaluated=evaluation is not None
    )
    assert row is not None
    return row


def entry_of(trial: Trial) -> Entry:
    """A cell by the keys of its lines."""
    return Entry(
        trial.cell.cell_id, trial.cell.training_id, trial.cell.label, "ceiling", "local-only"
    )


def lines_of(
    trial: Trial,
    training: Outcome | RowError,
    evaluation: EvaluationResult | RowError | None = None,
    ceiling: Ceiling | None = None,
    local_only: LocalOnly | None = None,
) -> RunResults:
    """The lines of a cell."""
    references = {
        kind: reference_line(kind, value)
        for kind, value in (("ceiling", ceiling), ("local-only", local_only))
        if value
    }
    return RunResults(
        RunFolder(Path()),
        {trial.cell.training_id: training_line(trial, training, {"fedsim": "0"})},
        {} if evaluation is None else {trial.cell.cell_id: evaluation_line(trial, evaluation, 1.0)},
        references,
    )


def ran(prepared: Prepared, trial: Trial) -> tuple[Outcome, EvaluationResult]:
    """A cell, trained and evaluated in this process."""
    data = prepared.data[trial.data_key]
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome, evaluate_cell(trial, outcome.state, data)


def as_planned(trial: Trial) -> Outcome:
    """The outcome of a training that did just what was planned, without its tensors."""
    plan = trial.plan
    assert plan is not None
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
    if algorithm.noise_at_clients():
        noise_at = "clients"
    else:
        noise_at = "sum"
    spent = (plan.epsilon_reached, plan.accountant, plan.mechanisms)
    return Outcome(*spent, noise_at, "", 0, 0, 0, 1.0, {})


def kept(folder: Path, trial: Trial, outcome: Outcome, class_names: Sequence[str] = ()) -> None:
    """Write what a training left, its tensors and its line, as a bench would."""
    store = ResultStore(folder)
    training = trial.cell.training_id
    state = keep_state(store.folder.state(training), outcome.state)
    store.append("trainings", [training_line(trial, outcome, {"fedsim": "0"}, class_names, state)])
