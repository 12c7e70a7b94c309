"""The lines that jobs write have exactly the keys of their records."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
from benches import Ran
from cells import small_cells, small_grid
from rows import ERROR, as_planned

import fedsim
from fedsim.evidence.check.check import CheckResult, check_lines
from fedsim.grid.models import Cell
from fedsim.methods.messages import Task
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.columns import COLUMNS
from fedsim.results.lines import RowError, evaluation_line, training_line
from fedsim.results.records import (
    AuditRecord,
    CheckRecord,
    ClientRecord,
    EvaluationRecord,
    LedgerRecord,
    ReferenceRecord,
    TrainingRecord,
)
from fedsim.results.store import RECORDS, ResultStore
from fedsim.training.trial import Trial

FAILED = RowError(**ERROR)
NOT_IN_REFERENCES = {
    "ceiling": {"mean", "clients"},
    "local-only": {"balanced_accuracy", "accuracy"},
}
"""The keys of a reference's record that its line lacks, by the kind of reference."""
RECORDS_OF_GROUPS = {
    "training": TrainingRecord,
    "ledger": LedgerRecord,
    "evaluation": EvaluationRecord,
    "ceiling": ReferenceRecord,
    "local_only": ReferenceRecord,
    "audit": AuditRecord,
}
"""The records from which columns are read, by the first part of ``Column.path``."""
BENCH_KINDS = [kind for kind in RECORDS if kind != "checks"]
"""The kinds of lines that a bench with audits and attacks writes."""


@pytest.fixture(scope="module")
def trial() -> Trial:
    """Return a small private cell."""
    (trial,) = small_cells("dp-gaussian", epsilon=4.0).trials
    return trial


def keys_of(record: Any) -> set[str]:
    """Return the keys of a record, including those that some lines lack."""
    return set(record.__annotations__)


def lines_with_keys(store: ResultStore) -> Iterator[tuple[str, Mapping[str, Any], set[str]]]:
    """Yield every line of a run and the parts of lines, each with the keys that it should have."""
    for kind in BENCH_KINDS:
        record, _ = RECORDS[kind]
        for line in store.lines(kind):
            keys = keys_of(record)
            if kind == "references":
                keys -= NOT_IN_REFERENCES[line["kind"]]
            if kind == "rounds":
                keys |= set(line)  # a method adds its own diagnostics
            if kind == "trainings":
                yield "ledger", line["ledger"], keys_of(LedgerRecord)
            if kind == "evaluations":
                for client in line["clients"]:
                    yield "clients", client, keys_of(ClientRecord)
            yield kind, line, keys


def test_lines_of_a_run_have_the_keys_of_their_records(bench: Callable[..., Ran]) -> None:
    grid = small_grid(
        "dp-gaussian",
        epsilon=4.0,
        evaluation={"per_class": 10, "per_client": True},
        audit={"pairs": 6, "rounds": 1},
    )
    ran = bench(grid)
    assert ran.code == 0, ran.output
    fedsim.audit(ran.folder)
    found = set()
    for part, line, keys in lines_with_keys(ResultStore(ran.folder)):
        found.add(part)
        assert set(line) == keys, part
    assert found == {*BENCH_KINDS, "ledger", "clients"}


def test_line_of_a_check_has_the_keys_of_its_record() -> None:
    finding = CheckResult(True, "", setting="example, aggregate")
    (line,) = check_lines("dp-gaussian", {}, [], [finding], quick=True)
    assert set(line) == keys_of(CheckRecord)


def test_line_of_a_failed_training_has_all_keys(trial: Trial) -> None:
    assert set(training_line(trial, FAILED, {})) == keys_of(TrainingRecord)


def test_line_of_a_failed_evaluation_has_no_scores(trial: Trial) -> None:
    line = evaluation_line(trial, FAILED, 0.0)
    assert set(line) == EvaluationRecord.__required_keys__


def test_ledger_that_left_its_plan_has_no_epsilon(trial: Trial) -> None:
    outcome = as_planned(trial, unaccounted="client 0 has 1 of 2 steps")
    ledger = training_line(trial, outcome, {})["ledger"]
    assert ledger is not None
    assert set(ledger) == {"unaccounted", "accountant"}


def test_training_line_holds_the_fields_of_cell_task_and_plan(trial: Trial) -> None:
    line = training_line(trial, as_planned(trial), {})
    assert line["plan"] is not None
    assert set(line["cell"]) == set(Cell.model_fields)
    assert set(line["task"]) == {field.name for field in fields(Task)} - {"public"}
    assert set(line["plan"]) == {field.name for field in fields(PrivacyPlan)}


def test_columns_are_read_from_keys_of_records() -> None:
    for name, column in COLUMNS.items():
        group, key, *_ = column.path.split(".")
        if group in RECORDS_OF_GROUPS:
            assert key in keys_of(RECORDS_OF_GROUPS[group]), name


def test_kinds_have_a_record_with_the_keys_that_are_checked() -> None:
    for record, checked_keys in RECORDS.values():
        assert set(checked_keys) <= record.__required_keys__
