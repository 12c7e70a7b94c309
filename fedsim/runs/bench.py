"""The bench: runs the jobs that a grid's folder lacks, draws the report, and says how it went."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from fedsim.errors import UserError
from fedsim.grid.cells import identity
from fedsim.interrupts import INTERRUPTED
from fedsim.partition.matrix import MOST_PANELS, write_partitions
from fedsim.plugins.registry import NOTEBOOK
from fedsim.privacy.plan import THEOREMS
from fedsim.results.join import Entry, RunResults, read_manifest, read_results
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display
from fedsim.runs.jobs import (
    CellJob,
    Job,
    RunContext,
    audit_of,
    check_of,
    checked_facts,
    claim_audits,
    has_checked,
    missing_audits,
    references_of,
)
from fedsim.runs.manifest import earlier_entries, prepared_again, write_manifest
from fedsim.runs.plan_view import show_warnings, time_left
from fedsim.runs.prepare import Prepared, label_matrices
from fedsim.runs.scheduler import Scheduler
from fedsim.runs.worker import ClusterLost, InProcess
from fedsim.training.state import may_hold_key
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import ClaimAudit
    from fedsim.report.report import Report
    from fedsim.runs.scheduler import Engine

MOST_SHOWN = 12
"""Rows that are not ok and are listed below the table of results, which has to stay in sight."""


def engine_for(
    prepared: Prepared, address: str | None = None, *, in_process: bool = False
) -> tuple[Prepared, AbstractContextManager[Engine]]:
    """What runs a grid: the cluster joined at ``address``, this process where that is asked for or
    takes less time, or a new cluster.
    """
    # a class of a notebook is in no other process
    here = in_process or any(trial.cell.algorithm.startswith(NOTEBOOK) for trial in prepared.trials)
    if address is None and (here or prepared.short):
        return replace(prepared, parallel=1), nullcontext(
            InProcess(prepared.nodes[0], capture=not in_process)
        )
    if (
        address is None and "ray" not in sys.modules
    ):  # nobody else on this machine may use a cluster of this process's own
        by_token = os.environ.setdefault("RAY_AUTH_MODE", "token") == "token"
        if by_token and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    from fedsim.runs.ray import RayEngine, local_ray

    return prepared, local_ray(prepared.nodes[0]) if address is None else nullcontext(RayEngine())


def run_bench(
    prepared: Prepared,
    folder: Path,
    console: Console,
    engine: AbstractContextManager[Engine],
    *,
    retry_failed: bool = False,
) -> int:
    """Run the jobs whose lines are missing on ``engine``, which is entered if there are any, then
    draw the report.

    Returns:
        The exit code: 0 if every cell is ok, 1 if one is not or a plug-in was left out, 130 after
            an interruption.
    """
    store = ResultStore(folder)
    bare = [Entry(t.cell.cell_id, t.cell.training_id, t.cell.label) for t in prepared.trials]
    show_warnings(prepared, console)
    audits = claim_audits(prepared)  # before the folder is made, for a mistake in the grid
    store.check_free()
    with store.lock():
        lines = read_results(folder)
        sources = {
            t.cell.algorithm: t.cell.source
            for t in prepared.trials
            if t.cell.training_id not in lines.trainings
        }
        trained = [line["cell"] for line in lines.trainings.values()]
        if older := sum(
            cell["source"] != sources.get(cell["algorithm"], cell["source"]) for cell in trained
        ):
            print_line(console, f"left out: {counted(older, 'row')} of older code", "yellow")
        ended = Counter(
            row.status for row in lines.rows_of(bare) if row.status != "failed" or not retry_failed
        )
        if prepared.short:
            minutes = 0.0
            words = ""
        else:
            minutes, words = time_left(prepared, lines.trainings, folder, audits)
        if minutes >= 1:
            print_line(console, words)
        display = Display(
            console,
            len(bare),
            ended,
            audits=len(audits),
            audits_ended=len(audits) - len(missing_audits(audits, lines.audits)),
        )
        run = RunContext(prepared, store, display)
        jobs = list(missing_jobs(run, audits, lines, retry_failed=retry_failed))
        _discard_checkpoints(run, lines)
        kept, dropped = earlier_entries(prepared, lines)
        if kept:
            print_line(
                console,
                f"the page goes on showing {counted(len(kept), 'cell')} of an earlier grid "
                "of this data and evaluation",
            )
        if dropped:
            print_line(
                console,
                f"the page no longer shows {counted(len(dropped), 'cell')} of an earlier grid "
                "(of other data, parameters, privacy or evaluation, or not ok). Their results stay "
                f"in {folder}, and the page shows them again when you run that grid here; with a "
                "folder for each grid both pages stay",
                "yellow",
            )
        write_manifest(store.folder, prepared, entries_of(run), kept)
        drawn = [
            matrix for matrix in label_matrices(prepared) if matrix.seed == prepared.grid.seeds[0]
        ]
        write_partitions(store.folder.partitions, drawn[:MOST_PANELS])
        try:
            report = _run(run, jobs, console, engine)
        except (KeyboardInterrupt, ClusterLost) as error:
            if isinstance(error, ClusterLost):
                lost = error
            else:
                lost = None
            finished = (
                f"{len(read_results(folder).rows_of(bare))} of {counted(len(bare), 'cell')} "
                "finished"
            )
            print_line(
                console,
                f"{f'{lost.where}: {lost.what}' if lost else 'interrupted'}: {finished}; the "
                "same command goes on",
            )
            if lost:
                return lost.exit_code
            return INTERRUPTED
    report.show(console)
    bad = [row for row in report.rows if row.status != "ok"]
    for row in bad[:MOST_SHOWN]:
        print_line(
            console, f"{row.setting}: {row.outcome} ({store.folder.log(row.cell_id)})", "red"
        )
    if len(bad) > MOST_SHOWN:
        print_line(
            console,
            f"and {len(bad) - MOST_SHOWN} more that are not ok; the report lists them",
            "red",
        )
    if any(row.status == "failed" for row in bad):
        print_line(
            console,
            "the same command runs failed cells again"
            if retry_failed
            else "run failed cells again with retry_failed",
        )
    print_line(console, f"report: {report.page}")
    if bad or prepared.refused:
        return 1
    return 0


def _discard_checkpoints(run: RunContext, lines: RunResults) -> None:
    """Remove the checkpoints of trainings that are finished, and those that may hold the key of
    secret noise of cells that the grid does not have any more.

    With the key anyone could take the noise off. A checkpoint without one stays: the training goes
    on from it once a grid has its cell again.
    """
    in_grid = {trial.cell.training_id for trial in run.prepared.trials}
    for path in run.store.folder.checkpoints.glob("*"):
        # A process that died while it replaced a checkpoint left a file .ID.safetensors.PID.part.
        training_id = path.name.removeprefix(".").partition(".")[0]
        line = lines.trainings.get(training_id)
        finished = line is not None and line["error"] is None
        if finished or (training_id not in in_grid and may_hold_key(path)):
            path.unlink(missing_ok=True)


def missing_jobs(
    run: RunContext, audits: Sequence[ClaimAudit], lines: RunResults, *, retry_failed: bool = False
) -> Iterator[Job]:
    """A job for every line that the grid's rows lack: cells, each behind the references that it
    needs first, then audits and checks.
    """
    seen = set(lines.references)
    first: dict[str, CellJob] = {}
    for trial in run.prepared.trials:
        for reference in references_of(run, trial):
            if reference.key[-1] not in seen:
                seen.add(reference.key[-1])
                yield reference
        job = _cell_job(run, trial, lines, retry_failed=retry_failed)
        equal = run.prepared.equal.get(trial.cell.training_id)
        if (
            equal is not None
            and isinstance(job, CellJob)
            and job.training is None
            and first.setdefault(equal, job) is not job
        ):
            first[equal].equal.append((trial, None))
        elif job is not None:
            yield job
    for audit in missing_audits(audits, lines.audits):
        yield audit_of(run, audit)
    yield from _missing_checks(run, lines)


def _missing_checks(run: RunContext, lines: RunResults) -> Iterator[Job]:
    """A check for every method, its parameters, unit and trust whose rows promise a theorem."""
    mode = run.prepared.grid.check
    seen = set[str]()
    for trial in chain.from_iterable(
        trial.trained for trial in run.prepared.trials if mode is not None
    ):
        if trial.plan is None or trial.plan.claim not in THEOREMS:
            continue
        facts = checked_facts(trial)
        done = any(has_checked(line, trial, quick=mode == "quick") for line in lines.checks)
        if not done and (key := identity(facts)) not in seen:
            seen.add(key)
            yield check_of(run, trial, quick=mode == "quick")


def _cell_job(
    run: RunContext, trial: Trial, lines: RunResults, *, retry_failed: bool
) -> Job | None:
    """What a cell lacks: its training, its judgement, or nothing."""
    cell = trial.cell
    training = lines.trainings.get(cell.training_id)
    judgement = lines.judgements.get(cell.cell_id)
    if training is None or (training["error"] is not None and retry_failed):
        return CellJob(run, trial)
    if training["error"] is not None or (
        judgement is not None and (judgement["error"] is None or not retry_failed)
    ):
        return None
    if training["state"] is not None and run.store.folder.state(cell.training_id).exists():
        return CellJob(run, trial, training)
    if cell.noise == "secret" and trial.plan is not None:
        what = (
            f"{cell.label} (cell {cell.cell_id}) is to be judged, and what its training made "
            "was not kept"
        )
        hint = (
            "its noise was secret, and a second training would be a second release of the "
            "same rows: give a new folder to train again"
        )
        raise UserError(str(run.store.folder.path), what, hint)
    return CellJob(run, trial)


def entries_of(run: RunContext) -> list[Entry]:
    """The grid's cells by the keys of their lines."""
    entries = []
    for trial in run.prepared.trials:
        cell, (high, low) = trial.cell, references_of(run, trial)
        entries.append(Entry(cell.cell_id, cell.training_id, cell.label, high.key[-1], low.key[-1]))
    return entries


def _run(
    run: RunContext, jobs: list[Job], console: Console, engine: AbstractContextManager[Engine]
) -> Report:
    """Run what is to do, then draw the report; its libraries are loaded beside the cells, and it is
    drawn while Ray ends.
    """
    count = len(run.prepared.trials)
    if not jobs:
        print_line(
            console, "the cell is finished" if count == 1 else f"all {count} cells are finished"
        )
        return _drawn(run)
    if judged := sum(isinstance(job, CellJob) and job.training is not None for job in jobs):
        print_line(
            console, f"{counted(judged, 'trained cell')} to be judged, without training again"
        )
    with ThreadPoolExecutor(1) as beside:
        with engine as running, run.display:
            for name in ("report", "map"):
                beside.submit(importlib.import_module, f"fedsim.report.{name}")
            Scheduler(run, running).run(jobs)
            drawing = beside.submit(_drawn, run)
        return drawing.result()


def _drawn(run: RunContext) -> Report:
    """The map, which needs the data and the generators, then the report, which needs the folder
    alone.
    """
    from fedsim.report.map import save_map
    from fedsim.report.report import write_report

    folder = run.store.folder.path
    save_map(read_results(folder), run.prepared.trials, run.prepared.data)
    return write_report(folder)


def run_again(folder: Path, console: Console, count: int, *, trust_plugin: bool = False) -> bool:
    """Run finished cells of a run folder, ``count`` drawn at random, again and show what differs;
    whether nothing does, to the last bit.

    The code of algorithms that the grid names as a file or a module that is not installed only runs
    with ``trust_plugin``.
    """
    from fedsim.report.compare import (
        compare,
    )  # late, for it takes pandas, which a bench's start does not wait for

    store = ResultStore(folder)
    prepared = prepared_again(store.folder, trust_plugin=trust_plugin)
    listed = read_manifest(folder)["cells"]
    if len(listed) != len(prepared.trials):
        what = (
            f"lists {counted(len(listed), 'cell')}, and its grid makes {len(prepared.trials)} "
            "with the code and data of today"
        )
        raise UserError(
            str(store.folder.manifest), what, "verify it with the code and data that it ran on"
        )
    # by position: with other code a cell has another id
    cells = {
        cell["cell_id"]: trial.cell for cell, trial in zip(listed, prepared.trials, strict=True)
    }
    lines = replace(read_results(folder), audits=(), checks=())  # which are no part of a cell
    finished = [
        row
        for row in lines.rows
        if row.cell_id in cells and row.status != "failed" and row.noise != "secret"
    ]
    if not finished:
        raise UserError(
            str(folder),
            "no finished cell can be repeated",
            "give a folder with finished cells whose noise is seeded",
        )
    old = [finished[i] for i in np.random.default_rng().permutation(len(finished))[:count]]
    drawn = [cells[row.cell_id] for row in old]
    # a cell that is equal to another is trained by the other's training, as it was
    trained = {
        id_ for cell in drawn for id_ in (cell.training_id, prepared.equal.get(cell.training_id))
    }
    trials = tuple(trial for trial in prepared.trials if trial.cell.training_id in trained)
    prepared, engine = engine_for(replace(prepared, trials=trials))
    with tempfile.TemporaryDirectory(prefix="fedsim-verify-") as scratch:
        run = RunContext(prepared, ResultStore(Path(scratch)), Display(console, len(trials)))
        with engine as running, run.display:
            Scheduler(run, running).run(missing_jobs(run, (), RunResults(run.store.folder)))
        write_manifest(run.store.folder, prepared, entries_of(run))
        found = read_results(scratch)
        chosen = {cell.cell_id for cell in drawn}
        new = [row for row in found.rows if row.cell_id in chosen], found.rounds()
    comparison = compare((str(folder), "the cells run again"), (old, lines.rounds()), new)
    comparison.show(console)
    same = comparison.rows_equal and len(comparison.matched) == len(old)
    if same:
        ended = "equal to the last bit in rows and rounds"
    else:
        ended = "they differ"
    print_line(
        console, f"{len(old)} of {counted(len(finished), 'finished cell')} run again: {ended}"
    )
    return same
