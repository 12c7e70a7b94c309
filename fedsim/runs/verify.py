"""Verifying a run: some of its finished cells run again, and rows and rounds are compared."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.json_lines import dump
from fedsim.plugins.registry import check_installed
from fedsim.report.compare import MATCHED_BY, compare
from fedsim.results.columns import Row, row_of
from fedsim.results.lines import RowError, training_line
from fedsim.results.run import RunResults, read_manifest, read_results
from fedsim.results.store import ResultStore
from fedsim.runs.bench import entries_of, missing_jobs
from fedsim.runs.display import Display
from fedsim.runs.engine import Engine
from fedsim.runs.jobs import RunContext
from fedsim.runs.manifest import grid_of, hardware, write_manifest
from fedsim.runs.prepare import Prepared
from fedsim.runs.scheduler import Scheduler
from fedsim.training.trial import Trial
from fedsim.words import counted

FIXED = (*MATCHED_BY, "algorithm", "params", "seed", "noise", "relation", "evaluation")
"""Fields of a row that its grid fixes, whatever a training gives."""


@dataclass(frozen=True)
class Verification:
    """The finished rows of a run folder: those that can be repeated, each with the cell that makes it, and the others.

    Attributes:
        differing: of rows in which a field that the grid fixes has another value, what differs, in words.
        left_out: how many rows cannot be repeated, by the reason.
    """

    folder: Path
    prepared: Prepared
    cells: Sequence[tuple[Row, Trial]]
    differing: Sequence[str]
    left_out: Mapping[str, int]
    hardware: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, prepare: Callable[[Grid], Prepared], *, trust_plugin: bool = False) -> Verification:
        """Read a run folder, maybe somebody else's, prepare its grid, and compare every finished row with what the grid fixes of it.

        The code of algorithms that the grid names as a file or a module that is not installed only runs with ``trust_plugin``.
        """
        store = ResultStore(folder)
        store.folder.check()
        manifest = read_manifest(folder)
        grid, refused = grid_of(manifest, store.folder), {entry["algorithm"] for entry in manifest.get("refused") or []}
        refused_names = {entry.name for entry in grid.algorithms if entry.display in refused}
        grid = grid.model_copy(update={"algorithms": tuple(entry for entry in grid.algorithms if entry.display not in refused)})
        for entry in () if trust_plugin else grid.algorithms:
            check_installed(entry.name, str(store.folder.manifest))
        prepared, listed = prepare(grid), manifest.get("cells") or []
        if len(listed) != len(prepared.trials):
            what = f"lists {counted(len(listed), 'cell')}, and its grid makes {len(prepared.trials)} with the code and data of today"
            raise UserError(str(store.folder.manifest), what, "verify it with the code and data that it ran on")
        # by position: with other code a cell has another id
        trials = {cell["cell_id"]: trial for cell, trial in zip(listed, prepared.trials, strict=True)}
        results = read_results(folder)
        rows = replace(results, audits={}, checks=()).rows  # which are no part of a cell
        cells, differing, left_out = [], [], Counter[str]()
        for row in rows:
            given, fixed = _fixed(row), _fixed(blank_row(trials[row.cell_id]))
            if row.status == "failed":
                continue
            if others := [f"{name} is {given[name]}, by its grid {fixed[name]}" for name in FIXED if given[name] != fixed[name]]:
                differing.append(f"{row.setting}: {'; '.join(others)}")
            elif row.noise == "secret":
                left_out["secret noise"] += 1
            else:
                cells.append((row, trials[row.cell_id]))
        sources = {trial.cell.algorithm: trial.cell.source for trial in prepared.trials}
        for row in results.every_row():
            if row.status != "failed" and row.cell_id not in trials:
                of_other_code = row.source != sources.get(row.algorithm, row.source)
                other = "of other code" if of_other_code else "not of the last grid"
                left_out["of a refused algorithm" if row.algorithm in refused_names else other] += 1
        if not cells and not differing:
            reasons = f"; {_reasons(left_out)}" if left_out else ""
            what, hint = f"no finished cell can be repeated{reasons}", "give a folder with finished cells whose noise is seeded"
            raise UserError(str(folder), what, hint)
        return cls(folder, prepared, cells, differing, left_out, manifest.get("hardware", {}))

    def chosen(self, count: int, ids: Sequence[str] = ()) -> list[int]:
        """Positions in ``cells``: of all whose ids begin with one of ``ids``; without any, of ``count`` drawn at random."""
        if not ids:
            drawn = np.random.default_rng().choice(len(self.cells), min(count, len(self.cells)), replace=False)
            return sorted(drawn.tolist())
        known = [row.cell_id for row, _ in self.cells]
        for start in ids:
            if not any(id_.startswith(start) for id_ in known):
                raise UserError("cells", f"no cell that can be repeated has the id '{start}'", f"known: {', '.join(known) or 'none'}")
        return [i for i, id_ in enumerate(known) if id_.startswith(tuple(ids))]

    def run(self, count: int, console: Console, engine: AbstractContextManager[Engine], ids: Sequence[str] = ()) -> bool:
        """Run the :meth:`chosen` cells again and show what differs; whether nothing does, to the last bit of rows and rounds."""
        chosen = self.chosen(count, ids)
        equal = not chosen or self._run_again([self.cells[i] for i in chosen], console, engine)
        finished = len(self.cells) + len(self.differing) + sum(self.left_out.values())
        lines = [f"{len(chosen)} of {finished} finished cells run again: {_RESULT[equal]}"] if chosen else []
        lines += self.differing
        if self.differing:
            lines.append(f"{len(self.differing)} of {finished} {'differs' if len(self.differing) == 1 else 'differ'} from the grid")
        if self.left_out:
            lines.append(f"{sum(self.left_out.values())} of {finished} cannot be repeated: {_reasons(self.left_out)}")
        for line in lines:
            console.print(Text(line), soft_wrap=True)
        return equal and not self.differing

    def _run_again(self, cells: Sequence[tuple[Row, Trial]], console: Console, engine: AbstractContextManager[Engine]) -> bool:
        """Run cells again and show what differs; whether rows and rounds are equal to the last bit."""
        old, chosen = [row for row, _ in cells], {trial.cell.cell_id for _, trial in cells}
        kept, equal = {training: line["state"] for training, line in read_results(self.folder).trainings.items()}, self.prepared.equal
        equal = {training: first for training, first in equal.items() if kept.get(training) == kept.get(first)}  # it was trained once
        firsts = {equal.get(trial.cell.training_id) for _, trial in cells}
        trials = [trial for trial in self.prepared.trials if trial.cell.cell_id in chosen or trial.cell.training_id in firsts]
        with tempfile.TemporaryDirectory(prefix="fedsim-verify-") as scratch:
            prepared = replace(self.prepared, trials=tuple(trials), equal=equal)
            run = RunContext(prepared, ResultStore(Path(scratch)), Display(console, len(trials)))
            with engine as running, run.display:
                Scheduler(run, running).run(missing_jobs(run, (), RunResults(run.store.folder)))
            write_manifest(run.store.folder, run.prepared, entries_of(run))
            found = read_results(scratch)
            rows = [row for row in found.rows if row.cell_id in chosen]
            new = rows, [record for record in found.rounds() if record["cell_id"] in chosen]
        comparison = compare((str(self.folder), "the cells run again"), (old, read_results(self.folder).rounds()), new)
        comparison.show(console)
        same = comparison.rows_equal and len(comparison.matched) == len(old)
        if not same:
            now = hardware()
            for name in [name for name in now if self.hardware.get(name) != now[name]]:
                console.print(Text(f"{name}: {self.hardware.get(name)} → {now[name]}"), soft_wrap=True)
        return same


def blank_row(trial: Trial) -> Row:
    """The row of a cell without a result."""
    nothing = training_line(trial, RowError(type="", message="", traceback=""), {})
    return row_of(trial.cell.cell_id, trial.cell.label, nothing)


_RESULT = {True: "equal to the last bit in rows and rounds", False: "they differ"}


def _fixed(row: Row) -> dict[str, str]:
    """The fields of a row that its grid fixes, as JSON, in which a tuple is a list."""
    fields = {name: getattr(row, name) for name in FIXED}
    return {name: value if isinstance(value, str) else dump(value) for name, value in fields.items()}


def _reasons(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
