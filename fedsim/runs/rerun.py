"""Finished cells of a run again, beside their rows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from fedsim.errors import UserError
from fedsim.plugins.registry import check_installed
from fedsim.report.compare import Comparison, compare
from fedsim.results.run import Lines, entries, grid_rounds, grid_rows, read_manifest
from fedsim.results.store import ResultStore
from fedsim.runs.bench import engine_for, entries_of, missing_jobs
from fedsim.runs.display import Display
from fedsim.runs.jobs import RunContext
from fedsim.runs.manifest import grid_of, write_manifest
from fedsim.runs.prepare import prepare, this_machine
from fedsim.runs.scheduler import Scheduler
from fedsim.words import counted


def rerun(
    folder: Path,
    console: Console,
    count: int,
    ids: Sequence[str] = (),
    *,
    trust_plugin: bool = False,
) -> Comparison:
    """Run some finished cells of a run again, elsewhere, and compare rows and rounds.

    Args:
        folder: the run folder, maybe somebody else's.
        console: where progress goes.
        count: how many cells, drawn at random.
        ids: instead of these, the cells whose ids begin with one of them.
        trust_plugin: also run the code of algorithms that the grid names as a file or a module that is not installed.

    Raises:
        UserError: the folder is no run, its grid cannot be prepared or is not that of its cells, or no such cell can be repeated.
    """
    store = ResultStore(folder)
    store.folder.check()
    manifest = read_manifest(folder)
    grid, refused = grid_of(manifest, store.folder), {entry["algorithm"] for entry in manifest.get("refused") or []}
    grid = grid.model_copy(update={"algorithms": tuple(entry for entry in grid.algorithms if entry.display not in refused)})
    for entry in () if trust_plugin else grid.algorithms:
        check_installed(entry.name, str(store.folder.manifest))
    prepared, listed = prepare(grid, [this_machine()]), manifest.get("cells") or []
    if len(listed) != len(prepared.trials):
        what = f"lists {counted(len(listed), 'cell')}, and its grid makes {len(prepared.trials)} with the code and data of today"
        raise UserError(str(store.folder.manifest), what, "run them again with the code and data that they ran on")
    # by position: with other code a cell has another id
    trials = {cell["cell_id"]: trial for cell, trial in zip(listed, prepared.trials, strict=True)}
    lines = replace(Lines.read(folder), audits={}, checks=())  # which are no part of a cell
    rows = [row for row in lines.rows(entries(folder, lines)) if row.status != "failed" and row.noise != "secret"]
    if ids:
        rows = [row for row in rows if row.cell_id.startswith(tuple(ids))]
    if not rows:
        raise UserError(str(folder), "no such finished cell can be repeated", "its noise must be seeded, and its training have succeeded")
    if not ids:
        rows = [rows[i] for i in sorted(np.random.default_rng().choice(len(rows), min(count, len(rows)), replace=False))]
    with tempfile.TemporaryDirectory(prefix="fedsim-rerun-") as scratch:
        again, engine = engine_for(replace(prepared, trials=tuple(trials[row.cell_id] for row in rows)))
        run = RunContext(again, ResultStore(Path(scratch)), Display(console, len(rows)))
        with engine as running, run.display:
            Scheduler(run, running).run(missing_jobs(run, (), Lines({}, {}, {})))
        write_manifest(run.store.folder, again, entries_of(run, ()))
        new = grid_rows(scratch), grid_rounds(scratch)
    kept = {row.cell_id for row in rows}
    old = rows, [record for record in grid_rounds(folder) if record["cell_id"] in kept]
    return compare((str(folder), "the cells run again"), old, new)
