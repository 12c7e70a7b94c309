"""Lists the jobs that a run folder still lacks: cells, references, audits and checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from fedsim.errors import UserError
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.grid.cells import identity
from fedsim.json_lines import plain_json
from fedsim.plugins.claims import compared
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import THEOREMS
from fedsim.results.join import Entry, RunResults
from fedsim.results.lines import reference_line
from fedsim.runs.items import Item, Progress
from fedsim.runs.jobs import CellJob, Job, Put, RunContext
from fedsim.runs.missing import Trained, is_trained, missing_audits, state_of, work_left
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
            first_job = first_jobs.setdefault(first_training, job)
            if first_job is not job:
                first_job.equal.append(trial)
                continue
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
    state = work_left(state_of(cell, lines), retry_failed=retry_failed)
    if state is None:
        return None
    if isinstance(state, Trained):
        return CellJob(run, trial, [state.training])
    is_release = cell.noise == "secret" and trial.plan is not None
    if is_release and is_trained(cell.training_id, lines):
        what = (
            f"{cell.label} (cell {cell.cell_id}) is to be evaluated, and what its training made "
            "was not kept"
        )
        hint = (
            "its noise was secret, and a second training would be a second release of the "
            "same rows: give a new folder to train again"
        )
        raise UserError(str(run.store.folder.path), what, hint)
    return CellJob(run, trial)


def entries_of(prepared: Prepared) -> list[Entry]:
    """Return the cells of a grid with the keys of their result lines.

    Cells share a reference if nothing differs on which it depends.
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
        facts["partition"] = trial.partition.fingerprint
        facts["scheme"] = cell.partition.model_dump(mode="json")
        local_only = identity({"kind": "local-only", **facts})
        entries.append(Entry(cell.cell_id, cell.training_id, cell.label, ceiling, local_only))
    return entries


def _reference_job(run: RunContext, trial: Trial, kind: str, key: str) -> Job:
    """Return the job of a reference, ``ceiling`` or ``local-only``; its line has ``key``."""
    cell = trial.cell
    partition = None
    if kind == "local-only":
        partition = trial.partition

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


def _audit_job(run: RunContext, audit: ClaimAudit) -> Job:
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


def _missing_checks(run: RunContext, lines: RunResults) -> Iterator[Job]:
    """Yield one check per method, parameters, unit and trust whose results claim a theorem."""
    mode = run.prepared.grid.check
    if mode is None:
        return
    quick = mode == "quick"
    known_checks = set()
    for line in lines.checks:
        if line["full"] or quick:
            known_checks.add(_checked_code(line))
    for cell_trial in run.prepared.trials:
        for trial in cell_trial.trained:
            if trial.plan is None or trial.plan.claim not in THEOREMS:
                continue
            key = _checked_code(vars(trial.cell) | {"check": harness_hash("evidence")})
            if key not in known_checks:
                known_checks.add(key)
                yield _check_job(run, trial, key, quick=quick)


def _checked_code(facts: Mapping[str, Any]) -> str:
    """Return a key that is equal for check lines and for cells that need this check.

    Args:
        facts: the values of a check line by name, or those of a cell and the hash of the code that
            checks.
    """
    key = {name: facts.get(name) for name in ("source", "unit", "trust", "check")}
    return identity(key | {"params": compared(facts["params"])})


def _check_job(run: RunContext, trial: Trial, key: str, *, quick: bool) -> Job:
    """Return the job of the check that a cell needs; similar cells share it."""
    cell = trial.cell
    defaults = lookup(cell.algorithm).Params.model_validate({}).model_dump(mode="json")
    changed_params = []
    for name, value in cell.params.items():
        if value != defaults.get(name):
            changed_params.append(f"{name}={plain_json(value)}")

    def ask(put: Put) -> tuple[Any, ...]:
        return "check", cell, changed_params, quick

    def take(item: Item) -> None:
        if isinstance(item, list):
            run.store.append("checks", item)

    return Job(run, ("check", key), f"the check of {cell.label}", ask, take, trial)
