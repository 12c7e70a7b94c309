"""The bench: runs what a grid's folder lacks, draws the report, and says how it went."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim.atomic import discard
from fedsim.evidence.audit.of_grid import ClaimAudit, audits_of, is_told
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.planning.label_matrices import drawn_matrices
from fedsim.planning.prepare import Prepared
from fedsim.plugins.check_file import on_file
from fedsim.report.plan_table import show_refused, show_warnings
from fedsim.results.folder import RunFolder
from fedsim.results.generators import tell_claim
from fedsim.results.partitions import write_partitions
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.runs.cluster import ClusterLost
from fedsim.runs.display import make_display, outcome
from fedsim.runs.manifest import write_manifest
from fedsim.runs.scheduler import Scheduler
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line

if TYPE_CHECKING:
    from fedsim.report.report import Report

REPORT = "from fedsim.cli import main; main()"
TOLD = 12
"""Rows that are not ok and are told below the table of results, which has to stay in sight."""


def run_bench(
    prepared: Prepared, folder: Path, console: Console, engine: AbstractContextManager[Any], *, retry_failed: bool = False
) -> int:
    """Run the cells that are not finished yet, then draw the report.

    Args:
        prepared: the grid.
        folder: the run folder.
        console: where progress and the table of results go.
        engine: entered if there is anything to run; Ray is connected inside.
        retry_failed: run cells again that failed before.

    Returns:
        The exit code: 0 if every cell is ok, 1 if one is not or a plug-in was left out, 130 after an interruption.

    Raises:
        UserError: the folder cannot be written, another fedsim runs in it, or the grid's audits could say nothing.
    """
    audits = audits_of(prepared.grid, prepared.trials)
    store = ResultStore(folder)
    show_refused(prepared, console)
    show_warnings(prepared, console)
    with store.lock():
        rows = store.rows()
        store.check_beside()
        finished = store.finished()
        for cell_id in finished:  # of an older fedsim, which wrote the row first
            discard(store.folder.checkpoint(cell_id))
        done = finished | (set() if retry_failed else store.failed())
        todo = [trial for trial in prepared.trials if trial.cell.cell_id not in done]
        if changed := older_code(prepared.grid, todo, rows):
            print_line(console, changed, "yellow")
        anew = told_anew([trial for trial in prepared.trials if trial.cell.cell_id in done], rows, store.folder)
        for row in anew:
            store.append(row)
        without = unreferenced(prepared.trials, [*rows, *anew])
        write_manifest(store.folder, prepared)
        write_partitions(store.folder, drawn_matrices(prepared))
        try:
            report = _run(prepared, todo, without, _untold(audits, todo, store), store, console, engine)
        except KeyboardInterrupt:
            print_line(console, f"interrupted: {_finished(prepared, store)}; the same command goes on")
            return INTERRUPTED
        except ClusterLost as error:
            print_line(console, f"{error.where}: {error.what}; {_finished(prepared, store)}; {error.right}")
            if store.folder.results.exists():  # in a process of its own: Ray ends this one within seconds of a loss
                subprocess.run([sys.executable, "-c", REPORT, "report", str(folder)], check=False)
            return error.exit_code
    report.show(console)
    bad = [row for row in report.rows if row.status != "ok"]
    for row in bad[:TOLD]:
        log = store.folder.log(row.cell_id)
        print_line(console, f"{row.setting}: {outcome(row)} ({log})", "red")
    if len(bad) > TOLD:
        print_line(console, f"and {len(bad) - TOLD} more that are not ok; the report lists them", "red")
    if any(row.status == "failed" for row in bad):
        again = "the same command runs failed cells again" if retry_failed else "run failed cells again with --retry-failed"
        console.print(again, soft_wrap=True)
    show_refused(prepared, console)
    print_line(console, f"report: {report.page}")
    return 1 if bad or prepared.refused else 0


def _finished(prepared: Prepared, store: ResultStore) -> str:
    written = {row.cell_id for row in store.rows()}
    count = sum(trial.cell.cell_id in written for trial in prepared.trials)
    return f"{count} of {counted(len(prepared.trials), 'cell')} finished"


def unreferenced(trials: Sequence[Trial], rows: Sequence[Row]) -> list[tuple[Trial, Row]]:
    """Finished cells whose rows lack a reference: its computation failed, and is to be tried again."""
    by_cell = {row.cell_id: row for row in rows if row.status != "failed"}
    found = [(trial, by_cell[trial.cell.cell_id]) for trial in trials if trial.cell.cell_id in by_cell]
    return [(trial, row) for trial, row in found if None in (row.ceiling_balanced_accuracy, row.local_only_balanced_accuracy)]


def older_code(grid: Grid, todo: Sequence[Trial], rows: Sequence[Row]) -> str | None:
    """What of ``rows`` is left out because the code of algorithms that run now was another then; None where nothing is."""
    sources = {trial.cell.algorithm: trial.cell.source for trial in todo}
    old = [row for row in rows if row.source != sources.get(row.algorithm, row.source)]
    if not old:
        return None
    names = list(dict.fromkeys(entry.display for entry in grid.algorithms if entry.name in {row.algorithm for row in old}))
    told = " and ".join(names) if len(names) < 4 else f"{len(names)} algorithms"
    count = "1 row is of the old code and is" if len(old) == 1 else f"{len(old)} rows are of the old code and are"
    return f"the source of {told} changed: {count} left out"


def told_anew(finished: Sequence[Trial], rows: Sequence[Row], folder: RunFolder) -> list[Row]:
    """Rows of finished cells to be written once more, as the last word: their code was checked since, or an edit was undone.

    A check is of exactly the code and parameters that ran, so it holds for the row, and for the generator in ``folder``: what was stated is
    checked, or no theorem since a fault was found. That a check has passed is not taken back where nothing is on file any more.
    """
    by_cell, newest = {row.cell_id: row for row in rows}, {row.algorithm: row.source for row in rows}
    told = []
    for trial in finished:
        row, plan = by_cell[trial.cell.cell_id], trial.plan
        if plan is not None and row.claim != plan.claim and not (row.claim == "checked" and _is_unchecked(trial)):
            generator = tell_claim(folder, trial.cell, plan.claim, row.generator)
            told.append(row.model_copy(update={"claim": plan.claim, "generator": generator}))
        elif row.source != newest[row.algorithm]:
            told.append(row)
    return told


def _is_unchecked(trial: Trial) -> bool:
    """Whether this machine knows of no check."""
    return on_file(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)) is None


def _untold(audits: Sequence[ClaimAudit], todo: Sequence[Trial], store: ResultStore) -> list[ClaimAudit]:
    """The audits of claims of which a cell is still to run, or a row does not show them yet."""
    rows, running = {row.cell_id: row for row in store.rows()}, {trial.cell.cell_id for trial in todo}

    def lacks(audit: ClaimAudit, cell_id: str) -> bool:
        return cell_id in running or (cell_id in rows and not is_told(rows[cell_id], audit.run.count))

    return [audit for audit in audits if any(lacks(audit, trial.cell.cell_id) for trial in audit.trials)]


def _run(
    prepared: Prepared,
    todo: list[Trial],
    without: list[tuple[Trial, Row]],
    audits: list[ClaimAudit],
    store: ResultStore,
    console: Console,
    engine: AbstractContextManager[Any],
) -> Report:
    """Run what is to do, then draw the report; its libraries are loaded beside the cells, and it is drawn while Ray ends."""
    if without:
        lack = "lacks" if len(without) == 1 else "lack"
        print_line(console, f"{counted(len(without), 'finished cell')} {lack} a reference, which is computed now")
    if not todo and not without and not audits:
        print_line(console, "the cell is finished" if len(prepared.trials) == 1 else f"all {len(prepared.trials)} cells are finished")
        return _drawn(store.folder.path)
    ended = {trial.cell.cell_id for trial in prepared.trials} - {trial.cell.cell_id for trial in todo}
    earlier = Counter[str](row.status for row in store.rows() if row.cell_id in ended)
    with ThreadPoolExecutor(1) as beside:
        with engine, make_display(console, len(prepared.trials), earlier.pop("ok", 0), earlier) as display:
            beside.submit(importlib.import_module, "fedsim.report.report")
            Scheduler(prepared, store, display).run(todo, without, audits)
            drawing = beside.submit(_drawn, store.folder.path)
        return drawing.result()


def _drawn(folder: Path) -> Report:
    from fedsim.report.report import write_report

    return write_report(folder)
