"""The jobs beside the cells: references, audits and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.grid.cells import identity
from fedsim.json_lines import plain_json
from fedsim.partition import Partition
from fedsim.plugins.claims import compared
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.results.lines import reference_line
from fedsim.runs.items import Item, Progress
from fedsim.runs.jobs import Job, Put, RunContext
from fedsim.runs.prepare import Prepared
from fedsim.training.trial import Trial

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import Audit, ClaimAudit


def references_of(run: RunContext, trial: Trial) -> tuple[Job, Job]:
    """Return the jobs of a cell's ceiling reference and of its local-only reference.

    The last part of a job's key is the key of the reference line.
    """
    cell = trial.cell
    partition = trial.partition
    data = run.prepared.data[trial.data_key]
    facts: dict[str, Any] = {
        "data": data.fingerprint,
        "probe_c": cell.evaluation.probe_c,
        "code": harness_hash("evaluation"),
    }
    partition_facts = {
        "partition": partition.fingerprint,
        "scheme": cell.partition.model_dump(mode="json"),
    }
    ceiling_key = identity({"kind": "ceiling", **facts})
    local_only_key = identity({"kind": "local-only", **facts, **partition_facts})
    return (
        _reference_job(run, trial, "ceiling", ceiling_key, None),
        _reference_job(run, trial, "local-only", local_only_key, partition),
    )


def _reference_job(
    run: RunContext, trial: Trial, kind: str, key: str, partition: Partition | None
) -> Job:
    """Return the job of one reference; ``key`` is the key of its line."""
    cell = trial.cell

    def ask(put: Put) -> tuple[Any, ...]:
        data = put(trial.data_key)
        return "reference", data, partition, cell.partition, cell.evaluation.probe_c

    def take(item: Item) -> None:
        if isinstance(item, Ceiling | LocalOnly):
            run.store.append("references", [reference_line(key, item)])

    return Job(run, (kind, key), f"the {kind} reference", ask, take)


def claim_audits(prepared: Prepared) -> tuple[ClaimAudit, ...]:
    """Return the audits of a grid's claims; none if the grid asks for none."""
    if prepared.grid.audit is None:
        return ()
    # The libraries of an audit take most of a second to import.
    from fedsim.evidence.audit.audit import audits_of

    return audits_of(prepared.grid, prepared.grid.audit, prepared.trials)


def audit_of(run: RunContext, audit: ClaimAudit) -> Job:
    """Return the job of one audit, which continues from the recorded pairs of trainings."""
    store = run.store
    key = audit.run.key
    trial = audit.trials[0]
    job_key = ("audit", key)
    pairs_done = 0

    def ask(put: Put) -> tuple[Any, ...]:
        nonlocal pairs_done
        known = store.audit_pairs(key)
        pairs_done = len(known)
        return "audit", trial.cell, audit.run, known

    def take(item: Item) -> None:
        nonlocal pairs_done
        if isinstance(item, Progress):
            store.append("pairs", ({"audit": key, **pair} for pair in item.pairs))
            pairs_done += len(item.pairs)
            run.display.job_progress(job_key, pairs_done, audit.run.count)
        else:
            outcome = cast("Audit", item)
            run.display.note(f"{audit.words}: {outcome.words()}")
            store.append("audits", [audit.line(outcome)])
            run.display.audit_finished()

    return Job(run, job_key, audit.words, ask, take, trial)


def check_of(run: RunContext, trial: Trial, *, quick: bool) -> Job:
    """Return the job of the check that a cell needs; similar cells share it."""
    cell = trial.cell
    defaults = lookup(cell.algorithm).Params.model_validate({}).model_dump(mode="json")
    changed_params = []
    for key, value in cell.params.items():
        if value != defaults.get(key):
            changed_params.append(f"{key}={plain_json(value)}")

    def ask(put: Put) -> tuple[Any, ...]:
        return "check", cell, changed_params, quick

    def take(item: Item) -> None:
        if isinstance(item, list):
            run.store.append("checks", item)

    job_key = ("check", identity(checked_facts(trial)))
    return Job(run, job_key, f"the check of {cell.label}", ask, take, trial)


def checked_facts(trial: Trial) -> dict[str, Any]:
    """Return the facts of a cell that decide its check; equal facts share one check."""
    cell = trial.cell
    return {
        "source": cell.source,
        "unit": cell.unit,
        "trust": cell.trust,
        "params": compared(cell.params),
        "check": harness_hash("evidence"),
    }


def has_checked(line: Mapping[str, Any], trial: Trial, *, quick: bool) -> bool:
    """Return whether a recorded check is the one that a cell needs.

    Args:
        line: the line of the recorded check.
        trial: the cell.
        quick: whether a quick check is enough.
    """
    if not (line["full"] or quick):
        return False
    recorded = {**line, "params": compared(line["params"])}
    return all(recorded.get(name) == value for name, value in checked_facts(trial).items())
