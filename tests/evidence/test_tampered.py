"""Records that somebody edited: whatever changes a privacy statement is not proved."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cells import digits_of_writers, public_digits, quick, small_cells, small_grid
from rows import as_planned, lines_of

import fedsim
from fedsim.errors import UserError
from fedsim.evidence.prove import Proof, prove
from fedsim.json_lines import decode, dump, load
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import large_delta
from fedsim.report.statement import statements
from fedsim.results.columns import Row, row_of

Line = dict[str, Any]
Change = Callable[[Line], None]


def record(entry: Any, **keys: Any) -> str:
    """Return the line of a training that did what was planned, with secret noise."""
    (trial,) = small_cells(entry, epsilon=4.0, privacy={"noise": "secret"}, **keys).trials
    (line,) = lines_of(trial, as_planned(trial)).trainings.values()
    return dump(line)


@cache
def gaussian() -> str:
    return record("dp-gaussian")


@cache
def hypernetwork() -> str:
    return record(quick("fedhypevae", noised="shared"))


@cache
def sampled() -> str:
    return record(quick("dp-linear", sample_rate=0.5))


@cache
def with_public() -> str:
    return record(quick("private-evolution"), public=public_digits())


@cache
def seeded() -> str:
    line = read(gaussian())
    (trial,) = small_cells("dp-gaussian", epsilon=4.0).trials
    line["cell"] = trial.cell.model_dump(mode="json")
    line["training_id"] = trial.cell.training_id
    return dump(line)


@cache
def tuned() -> str:
    entry = quick("dp-gaussian") | {"tune": {"radius": [0.5, 0.8]}}
    return record(entry, tune={"trials": 2})


def read(text: str) -> Line:
    line: Line = decode(load(text))
    return line


def put(**values: Any) -> Change:
    """Put values at places of a line, which are named ``cell__unit``."""

    def change(line: Line) -> None:
        for place, value in values.items():
            *parts, key = place.split("__")
            part = line
            for name in parts:
                part = part[name]
            part[key] = value

    return change


def in_plan_and_ledger(**values: Any) -> Change:
    """Give all mechanisms other values in plan and ledger alike, and their epsilon."""

    def change(line: Line) -> None:
        plan = line["plan"]
        plan["sigma"] *= values.get("noise", 1.0)
        for release in plan["releases"]:
            release["sample_rate"] *= values.get("rate", 1.0)
            release["steps"] = values.get("count", release["steps"])
            release["per_round"] = 1
        for mechanism in line["ledger"]["mechanisms"]:
            mechanism["noise_multiplier"] *= values.get("noise", 1.0)
            mechanism["sample_rate"] *= values.get("rate", 1.0)
            mechanism["count"] = values.get("count", mechanism["count"])
        ran = [Mechanism(**mechanism) for mechanism in line["ledger"]["mechanisms"]]
        spent, _ = epsilon(ran, plan["delta"])
        line["ledger"]["epsilon_spent"] = spent
        plan["epsilon_reached"] = spent

    return change


def budget(value: float) -> Change:
    """Another target, with what the same mechanisms spend left as it is."""
    return put(cell__epsilon=value, plan__epsilon_target=value)


def rename_release(line: Line) -> None:
    line["ledger"]["mechanisms"][0]["release"] = "harmless"


def everywhere(name: str, value: Any) -> Change:
    """Put a value into cell, task and plan."""
    values = {f"{part}__{name}": value for part in ("cell", "task", "plan")}
    return put(**values)


proved_scope = {"plan__claim": "proved", "plan__scope": "joint"}
TAMPERED: dict[str, tuple[Callable[[], str], Change]] = {
    "unit in the cell": (gaussian, put(cell__unit="client")),
    "unit everywhere": (gaussian, everywhere("unit", "client")),
    "unit is a group": (gaussian, put(cell__unit="group", cell__unit_column="patient")),
    "trust in the cell": (gaussian, put(cell__trust="silo")),
    "trust in the plan": (gaussian, put(plan__trust="silo")),
    "trust everywhere": (gaussian, everywhere("trust", "silo")),
    "noise": (seeded, put(cell__noise="secret")),
    "noise at": (gaussian, put(ledger__noise_at="clients")),
    "noised": (hypernetwork, put(cell__params__noised="all")),
    "noised and what follows": (hypernetwork, put(cell__params__noised="all", **proved_scope)),
    "claim": (hypernetwork, put(plan__claim="proved")),
    "scope": (hypernetwork, put(plan__scope="joint")),
    "delta in the plan": (gaussian, put(plan__delta=1e-9)),
    "delta everywhere": (gaussian, put(cell__delta=1e-9, plan__delta=1e-9)),
    "target": (gaussian, budget(1.0)),
    "target in the plan": (gaussian, put(plan__epsilon_target=1.0)),
    "no target": (gaussian, put(plan__epsilon_target=float("inf"))),
    "target and spent": (gaussian, put(plan__epsilon_target=1.0, ledger__epsilon_spent=1.0)),
    "spent": (gaussian, put(ledger__epsilon_spent=1.0)),
    "sensitivity": (gaussian, put(plan__sensitivity=0.5)),
    "clip": (gaussian, put(plan__clip=0.5)),
    "sigma": (gaussian, put(plan__sigma=100.0)),
    "noise of mechanisms": (gaussian, in_plan_and_ledger(noise=2.0)),
    "sample rate": (sampled, in_plan_and_ledger(rate=0.1)),
    "count": (sampled, in_plan_and_ledger(count=1)),
    "count that ran": (sampled, put(ledger__mechanisms=[])),
    "name of what ran": (gaussian, rename_release),
    "accountant": (gaussian, put(ledger__accountant="rdp")),
    "accountant everywhere": (gaussian, put(ledger__accountant="rdp", plan__accountant="rdp")),
    "clients in the cell": (gaussian, put(cell__clients=400)),
    "clients everywhere": (gaussian, put(cell__clients=400, task__clients=400)),
    "relation": (gaussian, put(cell__relation="replace-one")),
    "algorithm": (gaussian, put(cell__algorithm="dp-gmm")),
    "unknown algorithm": (gaussian, put(cell__algorithm="dp-nothing")),
    "params": (hypernetwork, put(cell__params__rounds=1)),
    "seed": (gaussian, put(cell__seed=7)),
    "source": (gaussian, put(cell__source="0123456789abcdef")),
    "data set": (gaussian, put(cell__dataset_hash="0123456789abcdef")),
    "data set's name": (gaussian, put(dataset="public images")),
    "public rows": (with_public, put(cell__public=None)),
    "public rows and their hash": (with_public, put(cell__public=None, cell__public_hash=None)),
    "partition": (gaussian, put(cell__partition__scheme="quantity")),
    "penalty": (gaussian, put(cell__evaluation__probe_c=0.5)),
    "search": (tuned, put(cell__tuning=None)),
    "search and its cost": (tuned, put(cell__tuning=None, plan__selection=None)),
    "trials of the search": (tuned, put(cell__tuning__trials=200.0)),
    "who trained": (gaussian, put(training_id="0123456789abcdef")),
    "no plan": (gaussian, put(plan=None)),
    "unreadable plan": (gaussian, put(plan__unit="person")),
}
"""Edits of a record that are caught."""
NOT_CAUGHT: dict[str, tuple[Callable[[], str], Change]] = {
    "versions": (gaussian, put(versions={"fedsim": "9"})),
    "seconds": (gaussian, put(seconds=0.1)),
    "bytes": (gaussian, put(uplink_bytes=1)),
    "names of classes": (gaussian, put(class_names=["a", "b"])),
    "label": (gaussian, put(cell__label="better")),
}
"""Edits that are not caught: no statement says these values, or their author chooses them."""


def joined(line: Line) -> Row:
    return row_of("c", "label", line)


def proof_of(line: Line) -> Proof:
    return prove(joined(line), line)


def stated(line: Line) -> str:
    """Return the statement of a line that nobody verifies."""
    texts = [text for statement in statements([joined(line)]) for text in statement.lines]
    return "\n".join(texts)


@pytest.mark.parametrize("untouched", [gaussian, hypernetwork, sampled, with_public, seeded, tuned])
def test_unedited_record_is_proved(untouched: Callable[[], str]) -> None:
    proof = proof_of(read(untouched()))
    assert proof.verdict == "proved", proof.why


@pytest.mark.parametrize("way", TAMPERED)
def test_edited_record_is_not_proved(way: str) -> None:
    text, change = TAMPERED[way]
    line = read(text())
    change(line)
    proof = proof_of(line)
    assert proof.verdict in ("not proved", "differs")
    assert proof.why


@pytest.mark.parametrize("way", NOT_CAUGHT)
def test_edit_that_is_not_caught_changes_no_statement(way: str) -> None:
    text, change = NOT_CAUGHT[way]
    line = read(text())
    before = stated(line)
    change(line)
    assert proof_of(line).verdict == "proved"
    assert stated(line) == before


def test_edited_number_of_rows_moves_only_a_warning() -> None:
    line = read(gaussian())
    before = stated(line)
    put(train_rows=10**6)(line)
    assert proof_of(line).verdict == "proved"
    new = set(stated(line).splitlines()) - set(before.splitlines())
    warning = large_delta("example", 1e-4, 10**6, line["dataset"], published=True)
    assert new == {f"  warning: {warning}"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(cell__unit="client"), "cell.unit is 'client' and task.unit 'example'"),
        (put(cell__trust="silo"), "cell.trust is 'silo' and plan.trust 'aggregate'"),
        (put(cell__clients=400), "cell.clients is 400 and task.clients 4"),
        (put(cell__delta=1e-9), "cell.delta is 1e-09 and plan.delta 0.0001"),
        (put(cell__noise="seeded"), "its training_id is not the hash of its cell"),
        (put(cell__relation="replace-one"), "its cell cannot be read (relation: Extra inputs"),
        (put(ledger__noise_at="clients"), "its noise_at is clients and in its algorithm's"),
    ],
)
def test_verdict_says_which_fields_contradict(change: Change, said: str) -> None:
    line = read(gaussian())
    change(line)
    assert said in proof_of(line).why


@pytest.mark.parametrize(
    "change",
    [
        put(cell__unit_column="person"),
        put(cell__unit_column=None),
        put(cell__unit_column="person", cell__partition__together="person"),
        put(train_groups=None),
        put(cell__unit="example", cell__unit_column=None, task__unit="example"),
    ],
)
def test_edited_group_is_not_proved(tmp_path: Path, change: Change) -> None:
    data = {"npz": str(digits_of_writers(tmp_path))}
    line = read(record("dp-gaussian", dataset=data, unit={"column": "writer"}))
    assert proof_of(line).verdict == "proved"
    change(line)
    assert proof_of(line).verdict in ("not proved", "differs")


def test_seeded_noise_named_secret_is_not_released(bench, tmp_path: Path) -> None:
    folder = bench(small_grid("dp-gaussian", epsilon=4.0)).folder
    path = folder / "trainings.jsonl"
    path.write_text(path.read_text().replace('"noise": "seeded"', '"noise": "secret"'))
    run = fedsim.load(folder)
    assert not run.verify().passed
    assert "guarantee: none: one of its results is not proved: its training_id" in run.statement()
    with pytest.raises(UserError, match="is not proved: its training_id is not the hash"):
        run.release(tmp_path / "package")
    assert not (tmp_path / "package").exists()
