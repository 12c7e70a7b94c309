"""Lists the jobs that a bench has to run, because the run folder lacks their result lines.

A job computes a cell, a reference, an audit or a check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fedsim.errors import UserError
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.grid.cells import identity
from fedsim.json_lines import plain_json
from fedsim.plugins.claims import class_name, compared
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import THEOREMS
from fedsim.results.join import Entry, RunResults
from fedsim.results.lines import reference_line
from fedsim.runs.items import Item, Progress
from fedsim.runs.jobs import CellJob, Job, Put, RunContext
from fedsim.runs.missing import is_trained, kept_training, missing_audits, work_left
from fedsim.runs.prepare import Prepared
from fedsim.training.trial import Trial

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import Audit, ClaimAudit


def missing_jobs(
    run: RunContext,
    audits: Sequence[ClaimAudit],
    lines: RunResults,
    *,
    retry_failed: bool = False,
) -> Iterator[Job]:
    """Yield the jobs for all result lines that the grid lacks.

    The references of a cell come before the cell. Cells with equal results share the job of the
    first of them. After the cells come the audits, then the checks.

    Args:
        run: the grid, its run folder and its display.
        audits: the audits of the grid's claims.
        lines: the lines that the run folder has.
        retry_failed: whether failed cells run again.

    Raises:
        UserError: a cell would have to be trained a second time with secret noise.
    """
    known_references = set(lines.references)
    first_jobs: dict[str, CellJob] = {}
    for trial, entry in zip(run.prepared.trials, entries_of(run.prepared), strict=True):
        for kind, key in (("ceiling", entry.ceiling), ("local-only", entry.local_only)):
            if key not in known_references:
                known_references.add(key)
                yield _reference_job(run, trial, kind, key)
        job = _job_for_cell(run, trial, lines, retry_failed=retry_failed)
        if job is None:
            continue
        if job.trains:
            first_training = run.prepared.equal[trial.cell.training_id]
            first_job = first_jobs.get(first_training)
            if first_job is not None:
                first_job.equal.append(trial)
                continue
            first_jobs[first_training] = job
        yield job
    for audit in missing_audits(audits, lines.audits):
        yield _audit_job(run, audit)
    yield from _missing_checks(run, lines)


def _job_for_cell(
    run: RunContext,
    trial: Trial,
    lines: RunResults,
    *,
    retry_failed: bool,
) -> CellJob | None:
    """Return the job that a cell needs; None if nothing is to be done for it."""
    cell = trial.cell
    if not work_left(cell, lines, retry_failed=retry_failed):
        return None
    training = kept_training(cell, lines)
    if training is not None:
        return CellJob(run, trial, training)
    has_noise = trial.plan is not None and trial.plan.adds_noise
    is_release = cell.noise == "secret" and has_noise
    if is_release and is_trained(cell.training_id, lines):
        what = (
            f"{cell.label} (cell {cell.cell_id}) cannot be evaluated, because what its training "
            "left was not kept"
        )
        hint = (
            "its noise was secret, so a second training would be a second release of the "
            "same rows; to train again all the same, give a new folder"
        )
        raise UserError(str(run.store.folder.path), what, hint)
    return CellJob(run, trial)


def entries_of(prepared: Prepared) -> list[Entry]:
    """Return the cells of a grid with the keys of their result lines.

    Cells share a reference if all that the reference depends on is equal. The data sets must still
    have their training rows, on which the keys depend.
    """
    entries = []
    code = harness_hash("evaluation")
    for trial in prepared.trials:
        cell = trial.cell
        facts: dict[str, Any] = {
            "data": prepared.data[trial.data_key].fingerprint,
            "probe_c": cell.evaluation.probe_c,
            "code": code,
        }
        ceiling = identity({"kind": "ceiling", **facts})
        # The ceiling does not depend on the partition, but local-only does.
        facts["partition"] = trial.partition.fingerprint
        facts["scheme"] = cell.partition.model_dump(mode="json")
        local_only = identity({"kind": "local-only", **facts})
        entries.append(Entry(cell.cell_id, cell.training_id, cell.label, ceiling, local_only))
    return entries


def _reference_job(run: RunContext, trial: Trial, kind: str, key: str) -> Job:
    """Return the job that computes a reference.

    Args:
        run: the grid, its run folder and its display.
        trial: a cell that the reference belongs to.
        kind: ``ceiling`` or ``local-only``.
        key: the key of the reference's result line.
    """
    cell = trial.cell
    partition = None
    if kind == "local-only":
        partition = trial.partition

    def request(put: Put) -> tuple[Any, ...]:
        data = put(trial.data_key)
        return "reference", data, partition, cell.partition, cell.evaluation.probe_c

    def record(item: Item) -> None:
        if isinstance(item, Ceiling | LocalOnly):
            run.store.append("references", [reference_line(key, item)])

    return Job(run, (kind, key), f"the {kind} reference", request, record)


def claim_audits(prepared: Prepared) -> tuple[ClaimAudit, ...]:
    """Return the audits of a grid's claims; none if the grid asks for none."""
    if prepared.grid.audit is None:
        return ()
    # The libraries of an audit take most of a second to import.
    from fedsim.evidence.audit.audit import audits_of

    return audits_of(prepared.grid, prepared.grid.audit, prepared.trials)


def _audit_job(run: RunContext, audit: ClaimAudit) -> Job:
    """Return the job of one audit, which continues from the recorded pairs of trainings.

    A job that has lost its worker asks again, so the recorded pairs are counted at every start.
    """
    store = run.store
    key = audit.run.key
    trial = audit.trials[0]
    job_key = ("audit", key)
    pairs_done = 0

    def request(put: Put) -> tuple[Any, ...]:
        nonlocal pairs_done
        known = store.audit_pairs(key)
        pairs_done = len(known)
        return "audit", trial.cell, audit.run, known

    def record(item: Item) -> None:
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

    return Job(run, job_key, audit.words, request, record, trial)


def _missing_checks(run: RunContext, lines: RunResults) -> Iterator[Job]:
    """Yield the checks that the grid's private cells lack.

    Cells with the same code, unit, trust and parameters share a check; numbers of steps may differ.
    Cells whose claim is no theorem are not checked.
    """
    mode = run.prepared.grid.check
    if mode is None:
        return
    quick = mode == "quick"
    # A full check also serves where the grid asks for a quick one.
    known_checks = {_checked_code(line) for line in lines.checks if line["full"] or quick}
    for cell_trial in run.prepared.trials:
        # A tuned cell has a trial for each set of parameters that it may train with.
        for trial in cell_trial.candidate_trials:
            if trial.plan is None or trial.plan.claim not in THEOREMS:
                continue
            key = _checked_code(vars(trial.cell) | {"check": harness_hash("evidence")})
            if key not in known_checks:
                known_checks.add(key)
                yield _check_job(run, trial, key, quick=quick)


def _checked_code(facts: Mapping[str, Any]) -> str:
    """Return a key that is equal for a check line and for the cells that it is about.

    Args:
        facts: the values of a check line by name; or those of a cell, with the hash of the code
            that checks as ``check``.
    """
    key = {name: facts.get(name) for name in ("source", "unit", "trust", "check")}
    # Classes of one file have one source. A file may be given by several paths.
    checked_class = class_name(facts["algorithm"])
    return identity(key | {"class": checked_class, "params": compared(facts["params"])})


def _check_job(run: RunContext, trial: Trial, key: str, *, quick: bool) -> Job:
    """Return the job that checks a cell's algorithm; all cells with the same ``key`` need it."""
    cell = trial.cell
    defaults = lookup(cell.algorithm).Params.model_validate({}).model_dump(mode="json")
    changed_params = [
        f"{name}={plain_json(value)}"
        for name, value in cell.params.items()
        if value != defaults.get(name)
    ]

    def request(put: Put) -> tuple[Any, ...]:
        return "check", cell, changed_params, quick

    def record(item: Item) -> None:
        if isinstance(item, list):
            run.store.append("checks", item)

    return Job(run, ("check", key), f"the check of {cell.label}", request, record, trial)
