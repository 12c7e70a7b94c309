"""Records that somebody edited: whatever changes a privacy statement is not proved."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cells import digits_of_writers, public_digits, quick, small_cells, small_grid
from edits import Edit, Line, edited, planned_and_ran, proof_of, put, record

import fedsim
from fedsim.errors import UserError
from fedsim.json_lines import dump
from fedsim.privacy.plan import large_delta
from fedsim.report.statement import statements
from fedsim.results.columns import row_of

Record = Callable[[], str]
SECRET = {"noise": "secret"}


@cache
def gaussian() -> str:
    return record("dp-gaussian", privacy=SECRET)


@cache
def hypernetwork() -> str:
    return record(quick("fedhypevae", noised="shared"), privacy=SECRET)


@cache
def sampled() -> str:
    return record(quick("dp-linear", sample_rate=0.5), privacy=SECRET)


@cache
def with_public() -> str:
    return record(
        quick("private-evolution"),
        privacy=SECRET,
        public=public_digits(),
    )


@cache
def seeded() -> str:
    (trial,) = small_cells("dp-gaussian", epsilon=4.0).trials
    cell = trial.cell.model_dump(mode="json")
    return dump(edited(gaussian(), put(cell=cell, training_id=trial.cell.training_id)))


@cache
def tuned() -> str:
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    return record(entry, privacy=SECRET, tune={"trials": 2})


def rename_release(line: Line) -> None:
    line["ledger"]["mechanisms"][0]["release"] = "harmless"


def everywhere(name: str, value: Any) -> Edit:
    """Put a value into cell, task and plan."""
    values = {f"{part}__{name}": value for part in ("cell", "task", "plan")}
    return put(**values)


proved_scope = {"plan__claim": "proved", "plan__scope": "joint"}
TAMPERED: dict[Record, dict[str, Edit]] = {
    gaussian: {
        "unit in the cell": put(cell__unit="client"),
        "unit everywhere": everywhere("unit", "client"),
        "unit is a group": put(cell__unit="group", cell__unit_column="patient"),
        "trust in the cell": put(cell__trust="silo"),
        "trust in the plan": put(plan__trust="silo"),
        "trust everywhere": everywhere("trust", "silo"),
        "noise at": put(ledger__noise_at="clients"),
        "delta in the plan": put(plan__delta=1e-9),
        "delta everywhere": put(cell__delta=1e-9, plan__delta=1e-9),
        "target": put(cell__epsilon=1.0, plan__epsilon_target=1.0),
        "target in the plan": put(plan__epsilon_target=1.0),
        "no target": put(plan__epsilon_target=float("inf")),
        "target and spent": put(plan__epsilon_target=1.0, ledger__epsilon_spent=1.0),
        "spent": put(ledger__epsilon_spent=1.0),
        "sensitivity": put(plan__sensitivity=0.5),
        "clip": put(plan__clip=0.5),
        "sigma": put(plan__sigma=100.0),
        "noise of mechanisms": planned_and_ran(noise=2.0),
        "name of what ran": rename_release,
        "accountant": put(ledger__accountant="rdp"),
        "accountant everywhere": put(ledger__accountant="rdp", plan__accountant="rdp"),
        "clients in the cell": put(cell__clients=400),
        "clients everywhere": put(cell__clients=400, task__clients=400),
        "relation": put(cell__relation="replace-one"),
        "algorithm": put(cell__algorithm="dp-gmm"),
        "unknown algorithm": put(cell__algorithm="dp-nothing"),
        "seed": put(cell__seed=7),
        "source": put(cell__source="0123456789abcdef"),
        "data set": put(cell__dataset_hash="0123456789abcdef"),
        "data set's name": put(dataset="public images"),
        "partition": put(cell__partition__scheme="quantity"),
        "penalty": put(cell__evaluation__probe_c=0.5),
        "who trained": put(training_id="0123456789abcdef"),
        "no plan": put(plan=None),
        "unreadable plan": put(plan__unit="person"),
    },
    seeded: {
        "noise": put(cell__noise="secret"),
    },
    hypernetwork: {
        "noised": put(cell__params__noised="all"),
        "noised and what follows": put(cell__params__noised="all", **proved_scope),
        "claim": put(plan__claim="proved"),
        "scope": put(plan__scope="joint"),
        "params": put(cell__params__rounds=1),
    },
    sampled: {
        "sample rate": planned_and_ran(rate=0.1),
        "count": planned_and_ran(count=1),
        "count that ran": put(ledger__mechanisms=[]),
    },
    with_public: {
        "public rows": put(cell__public=None),
        "public rows and their hash": put(cell__public=None, cell__public_hash=None),
    },
    tuned: {
        "search": put(cell__tuning=None),
        "search and its cost": put(cell__tuning=None, plan__selection=None),
        "trials of the search": put(cell__tuning__trials=200.0),
    },
}
"""Edits of records that are caught."""
EDITS = {
    way: (text, edit)
    for text, edits_of_record in TAMPERED.items()
    for way, edit in edits_of_record.items()
}
"""These edits by their names alone."""
NOT_CAUGHT = {
    "versions": put(versions={"fedsim": "9"}),
    "seconds": put(seconds=0.1),
    "bytes": put(uplink_bytes=1),
    "names of classes": put(class_names=["a", "b"]),
    "label": put(cell__label="better"),
}
"""Edits that are not caught: no statement says these values, or their author chooses them."""


REASONS = {
    "unit in the cell": "cell.unit is 'client' and task.unit 'example'",
    "trust in the cell": "cell.trust is 'silo' and plan.trust 'aggregate'",
    "clients in the cell": "cell.clients is 400 and task.clients 4",
    "delta in the plan": "cell.delta is 0.0001 and plan.delta 1e-09",
    "noise": "its training_id is not the hash of its cell",
    "relation": "its cell cannot be read (relation: Extra inputs",
    "noise at": "its noise_at is clients and in its algorithm's",
}
"""What the proof says of some of these edits."""


def stated(line: Line) -> str:
    """Return the statement of a line that nobody verifies."""
    (statement,) = statements([row_of("c", "label", line)])
    return "\n".join(statement.lines)


@pytest.mark.parametrize("untouched", [gaussian, hypernetwork, sampled, with_public, seeded, tuned])
def test_unedited_record_is_proved(untouched: Record) -> None:
    proof = proof_of(untouched())
    assert proof.verdict == "proved", proof.why


@pytest.mark.parametrize("way", EDITS)
def test_edited_record_is_not_proved(way: str) -> None:
    text, edit = EDITS[way]
    proof = proof_of(text(), edit)
    assert proof.verdict in ("not proved", "differs")
    assert proof.why


@pytest.mark.parametrize("way", REASONS)
def test_verdict_says_which_fields_contradict(way: str) -> None:
    text, edit = EDITS[way]
    assert REASONS[way] in proof_of(text(), edit).why


@pytest.mark.parametrize("way", NOT_CAUGHT)
def test_edit_that_is_not_caught_changes_no_statement(way: str) -> None:
    edit = NOT_CAUGHT[way]
    assert proof_of(gaussian(), edit).verdict == "proved"
    assert stated(edited(gaussian(), edit)) == stated(edited(gaussian()))


def test_edited_number_of_rows_moves_only_a_warning() -> None:
    edit = put(train_rows=10**6)
    line = edited(gaussian(), edit)
    assert proof_of(gaussian(), edit).verdict == "proved"
    before = stated(edited(gaussian())).splitlines()
    new = set(stated(line).splitlines()) - set(before)
    warning = large_delta(
        "example",
        1e-4,
        10**6,
        line["dataset"],
        published=True,
    )
    assert new == {f"  warning: {warning}"}


@pytest.mark.parametrize(
    "edit",
    [
        put(cell__unit_column="person"),
        put(cell__unit_column=None),
        put(cell__unit_column="person", cell__partition__together="person"),
        put(train_groups=None),
        put(cell__unit="example", cell__unit_column=None, task__unit="example"),
    ],
)
def test_edited_group_is_not_proved(tmp_path: Path, edit: Edit) -> None:
    data = {"npz": str(digits_of_writers(tmp_path))}
    text = record(
        "dp-gaussian",
        privacy=SECRET,
        dataset=data,
        unit={"column": "writer"},
    )
    assert proof_of(text).verdict == "proved"
    assert proof_of(text, edit).verdict in ("not proved", "differs")


def test_seeded_noise_named_secret_is_not_released(
    bench,
    tmp_path: Path,
) -> None:
    folder = bench(small_grid("dp-gaussian", epsilon=4.0)).folder
    path = folder / "trainings.jsonl"
    path.write_text(path.read_text().replace('"noise": "seeded"', '"noise": "secret"'))
    run = fedsim.load(folder)
    assert not run.verify().passed
    assert "guarantee: none: one of its results is not proved: its training_id" in run.statement()
    with pytest.raises(UserError, match="is not proved: its training_id is not the hash"):
        run.release(tmp_path / "package")
    assert not (tmp_path / "package").exists()
