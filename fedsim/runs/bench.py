"""The bench: runs the jobs that a grid's folder lacks, draws the report, and says how it went."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedsim.errors import UserError
from fedsim.files import discard
from fedsim.grid.cells import identity
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.partition.matrix import write_partitions
from fedsim.planning.label_matrices import drawn_matrices
from fedsim.planning.prepare import Prepared
from fedsim.plugins.notebook import keep_sources
from fedsim.report.plan import show_refused, show_warnings
from fedsim.results.run import Entry, Lines
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display, outcome
from fedsim.runs.engine import ClusterLost, Engine
from fedsim.runs.jobs import Desk, Job, JudgingJob, TrainingJob, audit_of, check_of, checked_facts, references_of
from fedsim.runs.manifest import write_manifest
from fedsim.runs.scheduler import Scheduler
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit
    from fedsim.report.report import Report

REPORT = "from fedsim.cli import main; main()"
MOST_SHOWN = 12
"""Rows that are not ok and are listed below the table of results, which has to stay in sight."""


def run_bench(
    prepared: Prepared, folder: Path, console: Console, engine: AbstractContextManager[Engine], *, retry_failed: bool = False
) -> int:
    """Run the jobs whose lines are missing, then draw the report.

    Args:
        prepared: the grid.
        folder: the run folder.
        console: where progress and the table of results go.
        engine: entered if there is anything to run.
        retry_failed: run cells again that failed before.

    Returns:
        The exit code: 0 if every cell is ok, 1 if one is not or a plug-in was left out, 130 after an interruption.

    Raises:
        UserError: the folder cannot be written, another fedsim runs in it, the grid's audits could say nothing, or a judgement is missing
            whose training cannot be repeated.
    """
    store = ResultStore(folder)
    show_refused(prepared, console)
    show_warnings(prepared, console)
    audits = _audits(prepared)  # before the folder is made
    with store.lock():
        code = _run_locked(prepared, store, console, engine, audits, retry_failed=retry_failed)
    show_refused(prepared, console)
    return code


def _run_locked(
    prepared: Prepared,
    store: ResultStore,
    console: Console,
    engine: AbstractContextManager[Engine],
    audits: Sequence[ClaimAudit],
    *,
    retry_failed: bool,
) -> int:
    folder = store.folder.path
    store.check()
    lines = Lines.read(folder)
    if changed := older_code(prepared.grid, prepared.trials, lines):
        print_line(console, changed, "yellow")
    ended = _ended(prepared.trials, lines, retry_failed=retry_failed)
    desk = Desk(prepared, store, Display(console, len(prepared.trials), *ended))
    jobs = list(missing_jobs(desk, audits, lines, retry_failed=retry_failed))
    sweep(store, prepared.trials, lines)
    keep_sources((trial.cell.algorithm for trial in prepared.trials), store.folder.methods)
    write_manifest(store.folder, prepared, entries_of(desk, audits))
    write_partitions(store.folder.partitions, drawn_matrices(prepared))
    try:
        report = _run(desk, jobs, console, engine)
    except KeyboardInterrupt:
        print_line(console, f"interrupted: {_finished(prepared, folder)}; the same command goes on")
        return INTERRUPTED
    except ClusterLost as error:
        print_line(console, f"{error.where}: {error.what}; {_finished(prepared, folder)}; {error.hint}")
        if Lines.read(folder).trainings:  # in a process of its own: Ray ends this one within seconds of a loss
            subprocess.run([sys.executable, "-c", REPORT, "report", str(folder)], check=False)
        return error.exit_code
    report.show(console)
    bad = [row for row in report.rows if row.status != "ok"]
    for row in bad[:MOST_SHOWN]:
        log = store.folder.log(row.cell_id)
        print_line(console, f"{row.setting}: {outcome(row)} ({log})", "red")
    if len(bad) > MOST_SHOWN:
        print_line(console, f"and {len(bad) - MOST_SHOWN} more that are not ok; the report lists them", "red")
    if any(row.status == "failed" for row in bad):
        again = "the same command runs failed cells again" if retry_failed else "run failed cells again with --retry-failed"
        console.print(again, soft_wrap=True)
    return 1 if bad or prepared.refused else 0


def _audits(prepared: Prepared) -> tuple[ClaimAudit, ...]:
    if prepared.grid.audit is None:
        return ()
    # late, for few grids have audits, and what they compute with takes most of a second to import
    from fedsim.evidence.audit.audit import audits_of

    return audits_of(prepared.grid, prepared.grid.audit, prepared.trials)


def missing_jobs(desk: Desk, audits: Sequence[ClaimAudit], lines: Lines, *, retry_failed: bool = False) -> Iterator[Job]:
    """A job for every line that the grid's rows lack: cells, each behind the references that it needs first, then audits and checks.

    Raises:
        UserError: a judgement is missing, what the training made was not kept, and its noise was secret, so that a second training would be
            a second release of the same rows.
    """
    seen = set(lines.references)
    for trial in desk.prepared.trials:
        for reference in references_of(desk, trial):
            if reference.key[-1] not in seen:
                seen.add(reference.key[-1])
                yield reference
        job = _cell_job(desk, trial, lines, retry_failed=retry_failed)
        if job is not None:
            yield job
    for audit in audits:
        if lines.audits.get(audit.run.key, {}).get("pairs") != audit.run.count:
            yield audit_of(desk, audit)
    yield from _missing_checks(desk, lines)


def _missing_checks(desk: Desk, lines: Lines) -> Iterator[Job]:
    """A check for every plug-in, its parameters, unit and trust that the grid's rows state a theorem of."""
    mode, seen = desk.prepared.grid.check, set[str]()
    for trial in chain.from_iterable(trial.trained for trial in desk.prepared.trials if mode is not None):
        if trial.plan is None or trial.plan.claim != "stated":
            continue
        facts = checked_facts(trial)
        done = any(
            all(check.get(name) == value for name, value in facts.items()) and (check["full"] or mode == "quick") for check in lines.checks
        )
        if not done and (key := identity(facts)) not in seen:
            seen.add(key)
            yield check_of(desk, trial, quick=mode == "quick")


def _cell_job(desk: Desk, trial: Trial, lines: Lines, *, retry_failed: bool) -> Job | None:
    """What a cell lacks: its training, its judgement, or nothing."""
    cell = trial.cell
    training, judgement = lines.trainings.get(cell.training_id), lines.judgements.get(cell.cell_id)
    if training is None or (training["error"] is not None and retry_failed):
        return TrainingJob(desk, trial)
    if training["error"] is not None or (judgement is not None and (judgement["error"] is None or not retry_failed)):
        return None
    if training["state"] is not None and desk.store.folder.state(cell.training_id).exists():
        return JudgingJob(desk, trial, training)
    if cell.noise == "secret" and trial.plan is not None:
        what = f"{cell.label} (cell {cell.cell_id}) is to be judged, and what its training made was not kept"
        hint = "its noise was secret, and a second training would be a second release of the same rows: give a new folder to train again"
        raise UserError(str(desk.store.folder.path), what, hint)
    return TrainingJob(desk, trial)


def sweep(store: ResultStore, trials: Iterable[Trial], lines: Lines) -> None:
    """Remove the checkpoints of trainings that have ended: one that a crash left may hold the key of secret noise."""
    for trial in trials:
        training = lines.trainings.get(trial.cell.training_id)
        if training is not None and training["error"] is None:
            discard(store.folder.checkpoint(trial.cell.training_id))


def entries_of(desk: Desk, audits: Sequence[ClaimAudit]) -> list[Entry]:
    """The grid's cells by the keys of their lines."""
    audit_keys = {trial.cell.cell_id: audit.run.key for audit in audits for trial in audit.trials}
    entries = []
    for trial in desk.prepared.trials:
        cell, (high, low) = trial.cell, references_of(desk, trial)
        entries.append(Entry(cell.cell_id, cell.training_id, cell.label, high.key[-1], low.key[-1], audit_keys.get(cell.cell_id)))
    return entries


def _ended(trials: Sequence[Trial], lines: Lines, *, retry_failed: bool) -> tuple[int, Mapping[str, int]]:
    """How many cells an earlier bench ended well, and how many otherwise, by status."""
    rows = lines.rows([Entry(t.cell.cell_id, t.cell.training_id, t.cell.label) for t in trials])
    counts = Counter[str](row.status for row in rows if row.status != "failed" or not retry_failed)
    return counts.pop("ok", 0), counts


def _finished(prepared: Prepared, folder: Path) -> str:
    lines = Lines.read(folder)
    done = lines.rows([Entry(trial.cell.cell_id, trial.cell.training_id, trial.cell.label) for trial in prepared.trials])
    return f"{len(done)} of {counted(len(prepared.trials), 'cell')} finished"


def older_code(grid: Grid, trials: Sequence[Trial], lines: Lines) -> str | None:
    """How many trainings are left out because the code of algorithms that run now was another then; None where none is."""
    sources = {trial.cell.algorithm: trial.cell.source for trial in trials if trial.cell.training_id not in lines.trainings}
    cells = [line["cell"] for line in lines.trainings.values()]
    old = [cell for cell in cells if cell["source"] != sources.get(cell["algorithm"], cell["source"])]
    if not old:
        return None
    names = list(dict.fromkeys(entry.display for entry in grid.algorithms if entry.name in {cell["algorithm"] for cell in old}))
    methods = " and ".join(names) if len(names) < 4 else f"{len(names)} algorithms"
    count = "1 row is of the old code and is" if len(old) == 1 else f"{len(old)} rows are of the old code and are"
    return f"the source of {methods} changed: {count} left out"


def _run(desk: Desk, jobs: list[Job], console: Console, engine: AbstractContextManager[Engine]) -> Report:
    """Run what is to do, then draw the report; its libraries are loaded beside the cells, and it is drawn while Ray ends."""
    folder, count = desk.store.folder.path, len(desk.prepared.trials)
    if not jobs:
        print_line(console, "the cell is finished" if count == 1 else f"all {count} cells are finished")
        return _drawn(folder)
    if judged := sum(isinstance(job, JudgingJob) for job in jobs):
        print_line(console, f"{counted(judged, 'trained cell')} to be judged, without training again")
    with ThreadPoolExecutor(1) as beside:
        with engine as running, desk.display:
            beside.submit(importlib.import_module, "fedsim.report.report")
            Scheduler(desk, running).run(jobs)
            drawing = beside.submit(_drawn, folder)
        return drawing.result()


def _drawn(folder: Path) -> Report:
    from fedsim.report.report import write_report

    return write_report(folder)
