"""Runs the jobs whose results a run folder lacks, draws the report, and says how the run ended."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedsim.interrupts import INTERRUPTED
from fedsim.partition.matrix import MOST_PANELS, write_partitions
from fedsim.plugins.registry import NOTEBOOK
from fedsim.results.join import Entry, RunResults, read_results
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display
from fedsim.runs.engine import ClusterLost, Engine, in_this_process
from fedsim.runs.job_list import claim_audits, entries_of, missing_jobs
from fedsim.runs.jobs import CellJob, Job, RunContext
from fedsim.runs.manifest import earlier_entries, write_manifest
from fedsim.runs.memory import check_memory
from fedsim.runs.missing import ended_cells, is_trained, missing_audits
from fedsim.runs.plan_view import show_time_left, show_warnings
from fedsim.runs.prepare import Prepared, label_matrices
from fedsim.runs.scheduler import Scheduler
from fedsim.training.state import may_hold_key
from fedsim.words import counted, print_line

if TYPE_CHECKING:
    from fedsim.report.report import Report

MOST_SHOWN = 12
"""At most this many results that are not ok are listed, so that the table above stays in view."""


def engine_for(
    prepared: Prepared,
    address: str | None = None,
    *,
    in_process: bool = False,
) -> tuple[Prepared, AbstractContextManager[Engine]]:
    """Return the grid and the engine that runs it.

    This process runs one job at a time, so the grid's ``parallel`` is 1 if the grid runs here.

    Args:
        prepared: the grid.
        address: the address of a running cluster. If it is given, this process is connected to that
            cluster already, and the grid runs there.
        in_process: whether to run the grid in this process. Short grids run here anyway, and so
            do classes of a notebook, which no other process can import.

    Raises:
        UserError: the grid needs more memory than this machine has.
    """
    if address is not None:
        from fedsim.runs.ray import RayEngine

        return prepared, nullcontext(RayEngine())
    from_notebook = any(trial.cell.algorithm.startswith(NOTEBOOK) for trial in prepared.trials)
    if in_process or from_notebook or prepared.short:
        check_memory(prepared, in_process=True)
        # If the user asked for this process, the output of a method goes to the terminal.
        engine = in_this_process(prepared.nodes[0], capture=not in_process)
        return replace(prepared, parallel=1), engine
    check_memory(prepared, in_process=False)
    if "ray" not in sys.modules:
        _protect_new_cluster()  # Ray reads the variables that this sets when it is imported
    from fedsim.runs.ray import local_cluster

    return prepared, local_cluster(prepared.nodes[0])


def _protect_new_cluster() -> None:
    """Require a secret token, so that no other user of this machine can use a new cluster."""
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def run_bench(
    prepared: Prepared,
    folder: Path,
    console: Console,
    engine: AbstractContextManager[Engine],
    *,
    retry_failed: bool = False,
) -> int:
    """Run the jobs whose result lines are missing, then draw the report.

    Args:
        prepared: the grid.
        folder: its run folder.
        console: where progress and results are shown.
        engine: the engine that runs the jobs; it is entered only if there are any.
        retry_failed: whether failed cells run again.

    Raises:
        UserError: the grid's audits have a mistake, a file of the run folder cannot be used, or a
            cell would have to be trained a second time with secret noise.
        PluginError: the first training of a plug-in failed, and ``keep_going`` is not set.

    Returns:
        The exit code: 0 if every cell is ok; 1 if one is not, a plug-in was left out or the cluster
            was lost; 130 after an interruption.
    """
    store = ResultStore(folder)
    show_warnings(prepared, console)
    # A mistake in the grid's audits must show before the folder is made.
    audits = claim_audits(prepared)
    entries = entries_of(prepared)
    with store.lock():
        lines = read_results(folder)
        show_time_left(prepared, lines, console, least=60, retry_failed=retry_failed)
        ended = ended_cells(entries, lines, retry_failed=retry_failed)
        display = Display(
            console,
            len(entries),
            Counter(row.status for row in lines.rows_of(ended)),
            audits=len(audits),
            audits_ended=len(audits) - len(missing_audits(audits, lines.audits)),
        )
        run = RunContext(prepared, store, display)
        jobs = list(missing_jobs(run, audits, lines, retry_failed=retry_failed))
        _discard_checkpoints(run, lines)
        _describe_run(run, entries, lines, console)
        try:
            report = _run_jobs(run, jobs, console, engine)
        except (KeyboardInterrupt, ClusterLost) as error:
            lines = read_results(folder)
            ended = ended_cells(entries, lines, retry_failed=retry_failed)
            progress = f"{len(ended)} of {counted(len(entries), 'cell')} finished"
            return _show_early_end(error, progress, console)
    return _show_report(report, run, console, retry_failed=retry_failed)


def _discard_checkpoints(run: RunContext, lines: RunResults) -> None:
    """Remove the checkpoints that no training needs any more.

    A finished training needs no checkpoint. A checkpoint of a cell that has left the grid is
    removed if it may hold the key of secret noise, with which anyone could subtract the noise.
    Without a key it stays, so that the training continues once a grid has its cell again.
    """
    grid_ids = {trial.cell.training_id for trial in run.prepared.trials}
    for path in run.store.folder.checkpoints.glob("*"):
        # A process that died while it replaced a checkpoint left a file .ID.safetensors.PID.part.
        training_id, _, _ = path.name.removeprefix(".").partition(".")
        if is_trained(training_id, lines) or (training_id not in grid_ids and may_hold_key(path)):
            path.unlink(missing_ok=True)


def _describe_run(
    run: RunContext,
    entries: Sequence[Entry],
    lines: RunResults,
    console: Console,
) -> None:
    """Write the manifest and the partitions, and say which earlier cells the page still shows."""
    prepared = run.prepared
    folder = run.store.folder
    shown_entries, dropped_entries = earlier_entries(prepared, lines)
    if shown_entries:
        cells = counted(len(shown_entries), "cell")
        print_line(console, f"the page still shows {cells} of an earlier grid of this data")
    if dropped_entries:
        cells = counted(len(dropped_entries), "cell")
        print_line(
            console,
            f"the page no longer shows {cells} of an earlier grid: their code, data, parameters, "
            f"privacy or evaluation differ, or they are not ok. Their results stay in "
            f"{folder.path}; run that grid here again to show them, or give each grid its own "
            "folder",
            "yellow",
        )
    write_manifest(folder, prepared, entries, shown_entries)
    first_seed = prepared.grid.seeds[0]
    matrices = [matrix for matrix in label_matrices(prepared) if matrix.seed == first_seed]
    write_partitions(folder.partitions, matrices[:MOST_PANELS])


def _run_jobs(
    run: RunContext,
    jobs: Sequence[Job],
    console: Console,
    engine: AbstractContextManager[Engine],
) -> Report:
    """Run the jobs, then draw the report.

    Another thread loads the libraries of the report while the jobs run, and draws the report while
    the engine shuts down.
    """
    if not jobs:
        count = len(run.prepared.trials)
        words = "the cell is finished" if count == 1 else f"all {count} cells are finished"
        print_line(console, words)
        return _draw_report(run)
    only_evaluated = sum(isinstance(job, CellJob) and not job.trains for job in jobs)
    if only_evaluated:
        cells = counted(only_evaluated, "trained cell")
        print_line(console, f"{cells} to be evaluated, without training again")
    with ThreadPoolExecutor(1) as background:
        with engine as running, run.display:
            background.map(importlib.import_module, ("fedsim.report.report", "fedsim.report.map"))
            Scheduler(run, running).run(jobs)
            drawing = background.submit(_draw_report, run)
        return drawing.result()


def _draw_report(run: RunContext) -> Report:
    """Draw the map, which needs the data and the generators, then the report."""
    from fedsim.report.map import save_map
    from fedsim.report.report import write_report

    folder = run.store.folder.path
    save_map(read_results(folder), run.prepared.trials, run.prepared.data)
    return write_report(folder)


def _show_early_end(error: KeyboardInterrupt | ClusterLost, progress: str, console: Console) -> int:
    """Say what ended the run early and how much is finished; return the exit code."""
    reason = "interrupted"
    exit_code = INTERRUPTED
    if isinstance(error, ClusterLost):
        reason = f"{error.where}: {error.what}"
        exit_code = error.exit_code
    print_line(console, f"{reason}: {progress}; the same command continues")
    return exit_code


def _show_report(report: Report, run: RunContext, console: Console, *, retry_failed: bool) -> int:
    """Show the results and the cells that are not ok; return the exit code."""
    report.show(console)
    not_ok = [row for row in report.rows if row.status != "ok"]
    for row in not_ok[:MOST_SHOWN]:
        log = run.store.folder.log(row.cell_id)
        print_line(console, f"{row.setting}: {row.outcome} ({log})", "red")
    unlisted = len(not_ok) - MOST_SHOWN
    if unlisted > 0:
        print_line(
            console,
            f"and {unlisted} more without an ok result; report.html lists all of them",
            "red",
        )
    if any(row.status == "failed" for row in not_ok):
        hint = "give --retry-failed to run failed cells again"
        if retry_failed:
            hint = "the same command runs failed cells again"
        print_line(console, hint)
    print_line(console, f"report: {report.page}")
    if not_ok or run.prepared.refused:
        return 1
    return 0
