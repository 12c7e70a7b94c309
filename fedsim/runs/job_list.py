"""Lists the jobs that a run folder still lacks, and the cells of its grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from fedsim.errors import UserError
from fedsim.grid.cells import identity
from fedsim.privacy.plan import THEOREMS
from fedsim.results.join import Entry, RunResults
from fedsim.runs.jobs import CellJob, Job, JobCell, RunContext
from fedsim.runs.missing import Missing, missing_audits, state_of, work_left
from fedsim.runs.side_jobs import audit_of, check_of, checked_facts, has_checked, references_of
from fedsim.training.trial import Trial

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit


def missing_jobs(
    run: RunContext, audits: Sequence[ClaimAudit], lines: RunResults, *, retry_failed: bool = False
) -> Iterator[Job]:
    """Yield a job for every result line that the grid lacks.

    The references of a cell come before it. After the cells come the audits, then the checks.

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
    for trial in run.prepared.trials:
        for reference in references_of(run, trial):
            key = reference.key[-1]
            if key not in known_references:
                known_references.add(key)
                yield reference
        job = _job_for_cell(run, trial, lines, retry_failed=retry_failed)
        if job is None:
            continue
        first_training = run.prepared.equal.get(trial.cell.training_id)
        if first_training is not None and job.training is None:
            first_job = first_jobs.setdefault(first_training, job)
            if first_job is not job:
                first_job.equal.append(JobCell(trial))
                continue
        yield job
    for audit in missing_audits(audits, lines.audits):
        yield audit_of(run, audit)
    yield from _missing_checks(run, lines)


def _job_for_cell(
    run: RunContext, trial: Trial, lines: RunResults, *, retry_failed: bool
) -> CellJob | None:
    """Return the job that a cell needs; None if nothing is to be done for it."""
    cell = trial.cell
    state = work_left(state_of(cell, lines), retry_failed=retry_failed)
    if state is None:
        return None
    if isinstance(state, Missing):
        return CellJob(run, trial)
    tensors = run.store.folder.state(cell.training_id)
    if state.training["state"] is not None and tensors.exists():
        return CellJob(run, trial, state.training)
    # What the training left was not kept, so the cell has to be trained again.
    if cell.noise == "secret" and trial.plan is not None:
        raise _second_release(run, trial)
    return CellJob(run, trial)


def _second_release(run: RunContext, trial: Trial) -> UserError:
    """Return the error for a cell that must not be trained a second time."""
    cell = trial.cell
    what = (
        f"{cell.label} (cell {cell.cell_id}) is to be evaluated, and what its training made "
        "was not kept"
    )
    hint = (
        "its noise was secret, and a second training would be a second release of the "
        "same rows: give a new folder to train again"
    )
    return UserError(str(run.store.folder.path), what, hint)


def _missing_checks(run: RunContext, lines: RunResults) -> Iterator[Job]:
    """Yield one check per method, parameters, unit and trust whose results claim a theorem."""
    mode = run.prepared.grid.check
    if mode is None:
        return
    quick = mode == "quick"
    known_checks = set[str]()
    for trial in chain.from_iterable(trial.trained for trial in run.prepared.trials):
        if trial.plan is None or trial.plan.claim not in THEOREMS:
            continue
        if any(has_checked(line, trial, quick=quick) for line in lines.checks):
            continue
        key = identity(checked_facts(trial))
        if key not in known_checks:
            known_checks.add(key)
            yield check_of(run, trial, quick=quick)


def entries_of(run: RunContext) -> list[Entry]:
    """Return the cells of the grid with the keys of their result lines."""
    entries = []
    for trial in run.prepared.trials:
        cell = trial.cell
        ceiling, local_only = references_of(run, trial)
        entry = Entry(
            cell.cell_id, cell.training_id, cell.label, ceiling.key[-1], local_only.key[-1]
        )
        entries.append(entry)
    return entries
