"""Runs finished cells of a run folder again, to see whether their results are reproduced."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from fedsim.errors import UserError
from fedsim.grid.models import Cell
from fedsim.results.columns import Row
from fedsim.results.join import RunResults, read_manifest, read_results
from fedsim.results.store import ResultStore, RunFolder
from fedsim.runs.bench import engine_for
from fedsim.runs.display import Display
from fedsim.runs.job_list import entries_of, missing_jobs
from fedsim.runs.jobs import RunContext
from fedsim.runs.manifest import prepared_again
from fedsim.runs.prepare import Prepared
from fedsim.runs.scheduler import Scheduler
from fedsim.words import counted, print_line

if TYPE_CHECKING:
    from fedsim.report.compare import Records


def run_again(folder: Path, console: Console, count: int, *, trust_plugin: bool = False) -> bool:
    """Run finished cells again, drawn at random, and show whether their results are equal.

    Args:
        folder: the run folder.
        console: where the comparison is shown.
        count: how many cells to draw, at least 1; all of them if fewer are finished.
        trust_plugin: whether to run the code of algorithms that the grid names as a file or as a
            module that is not installed.

    Returns:
        Whether all results and rounds are equal to the last bit.

    Raises:
        UserError: no finished cell has seeded noise, or the grid makes another number of cells with
            the code and data of today.
    """
    # This import loads pandas, which takes long, and other commands import this module too.
    from fedsim.report.compare import compare

    run_folder = RunFolder(folder)
    prepared = prepared_again(run_folder, trust_plugin=trust_plugin, runs_cells=True)
    cells = _cells_of_today(run_folder, prepared)
    # The cells that run again get no audits, checks or attacks, so these are not compared.
    lines = replace(read_results(folder), audits=(), checks=(), memberships={})
    finished = _repeatable_rows(run_folder, lines, cells)
    random_order = np.random.default_rng().permutation(len(finished))
    old_rows = [finished[i] for i in random_order[:count]]
    drawn_cells = [cells[row.cell_id] for row in old_rows]
    new_records = _run_in_scratch_folder(prepared, drawn_cells, console)
    comparison = compare(
        (str(folder), "the cells run again"),
        (old_rows, lines.rounds()),
        new_records,
    )
    comparison.show(console)
    same = comparison.rows_equal and len(comparison.matched) == len(old_rows)
    if same:
        verdict = "equal to the last bit in results and rounds"
    else:
        verdict = "not all results are equal; the lines above say what differs"
    available = counted(len(finished), "finished cell")
    print_line(console, f"{len(old_rows)} of {available} run again: {verdict}")
    return same


def _cells_of_today(folder: RunFolder, prepared: Prepared) -> Mapping[str, Cell]:
    """Return the cells that the grid makes today, by the cell ids of the run folder.

    Cells are matched by position, because a cell's id changes with the code.

    Raises:
        UserError: the grid makes another number of cells than the manifest lists.
    """
    listed = read_manifest(folder.path)["cells"]
    cells = [trial.cell for trial in prepared.trials]
    if len(listed) != len(cells):
        count = counted(len(listed), "cell")
        problem = f"lists {count}, and its grid makes {len(cells)} with the code and data of today"
        hint = "verify it with the code and data that it ran on"
        raise UserError(str(folder.manifest), problem, hint)
    return {entry["cell_id"]: cell for entry, cell in zip(listed, cells, strict=True)}


def _repeatable_rows(folder: RunFolder, lines: RunResults, cells: Mapping[str, Cell]) -> list[Row]:
    """Return the results of finished cells that did not fail and whose noise is not secret.

    Args:
        folder: the run folder.
        lines: its result lines.
        cells: the cells of today, by the cell ids of the run folder.

    Raises:
        UserError: there is no such cell.
    """
    rows = [
        row
        for row in lines.rows
        if row.cell_id in cells and row.status != "failed" and row.noise != "secret"
    ]
    if not rows:
        problem = "no finished cell can be repeated"
        hint = "give a folder with finished cells whose noise is seeded"
        raise UserError(str(folder.path), problem, hint)
    return rows


def _run_in_scratch_folder(
    prepared: Prepared,
    cells: Sequence[Cell],
    console: Console,
) -> Records:
    """Train and evaluate cells in a folder that is removed afterwards.

    Returns:
        The results of the cells, and the round records of all cells that ran.
    """
    drawn = {cell.training_id for cell in cells}
    # Of cells with equal results only the first was trained, so that training runs too.
    trainings = drawn | {prepared.equal[training_id] for training_id in drawn}
    trials = [trial for trial in prepared.trials if trial.cell.training_id in trainings]
    prepared, engine = engine_for(replace(prepared, trials=tuple(trials)))
    # The entries need the hash of the training examples, which are freed when the jobs start.
    entries = entries_of(prepared)
    with tempfile.TemporaryDirectory(prefix="fedsim-verify-") as scratch:
        store = ResultStore(scratch)
        display = Display(console, len(trials))
        run = RunContext(prepared, store, display)
        jobs = missing_jobs(run, (), RunResults(store.folder))
        with engine as running, display:
            scheduler = Scheduler(run, running)
            scheduler.run(jobs)
        results = replace(read_results(scratch), entries=entries)
        cell_ids = {cell.cell_id for cell in cells}
        rows = [row for row in results.rows if row.cell_id in cell_ids]
        return rows, results.rounds()
