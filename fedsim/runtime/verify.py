"""Verifying a run: some of its finished cells run again, and rows and rounds are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from fedsim.audit.of_grid import unaudited
from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.methods.registry import check_installed
from fedsim.report.comparison import Compared
from fedsim.results.grid_rows import grid_rows, read_manifest
from fedsim.results.matching import Run, compare
from fedsim.results.rows import Row, RowError
from fedsim.results.store import ResultStore
from fedsim.runtime.display import make_display
from fedsim.runtime.manifest import grid_of, hardware
from fedsim.runtime.scheduler import Scheduler
from fedsim.simulation.preflight import Prepared
from fedsim.simulation.row import failed_row
from fedsim.simulation.trial import Trial


@dataclass(frozen=True)
class Verification:
    """A run folder whose cells can be run again.

    Attributes:
        folder: the run folder.
        prepared: its grid.
        cells: finished rows, each with the cell that makes it.
        hardware: what the run ran on.
    """

    folder: Path
    prepared: Prepared
    cells: Sequence[tuple[Row, Trial]]
    hardware: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, prepare: Callable[[Grid], Prepared], *, trust_plugin: bool = False) -> Verification:
        """Read a run folder and prepare its grid.

        Args:
            folder: the run folder, maybe somebody else's.
            prepare: makes a grid ready.
            trust_plugin: also run the code of algorithms that the grid names as a file or a module that is not installed.

        Raises:
            UserError: it is none, its grid names a plug-in or cannot be prepared, or no cell of it can be repeated.
        """
        store = ResultStore(folder)
        store.folder.check()
        manifest = read_manifest(folder)
        grid, refused = grid_of(manifest, store.folder), {each["algorithm"] for each in manifest.get("refused") or []}
        grid = grid.model_copy(update={"algorithms": tuple(entry for entry in grid.algorithms if entry.display not in refused)})
        for entry in () if trust_plugin else grid.algorithms:
            check_installed(entry.name, str(store.folder.manifest))
        prepared = prepare(grid)
        rows = [row for row in grid_rows(folder) if row.status != "failed" and row.noise != "secret"]
        # without a result, a cell's row still has its setting, by which it is matched: its id changes with the code
        nothing = RowError(type="", message="", traceback="")
        trials = {trial.cell.cell_id: trial for trial in prepared.trials}
        settings = Run([failed_row(trial, nothing, {}) for trial in prepared.trials], []).settings
        found = [
            (row, settings[key][seed]) for key, each in Run(rows, []).settings.items() for seed, row in each.items() if key in settings
        ]
        if not found:
            what = "no finished cell can be repeated: none is of the last grid, or all have secret noise"
            raise UserError(str(folder), what, "give a folder with finished cells whose noise is seeded")
        return cls(folder, prepared, [(row, trials[blank.cell_id]) for row, blank in found], manifest.get("hardware", {}))

    def run(self, count: int, console: Console, engine: AbstractContextManager[Any]) -> bool:
        """Run ``count`` cells again, drawn at random, and show what differs.

        Returns:
            Whether rows and rounds are equal to the last bit.
        """
        chosen = sorted(np.random.default_rng().choice(len(self.cells), min(count, len(self.cells)), replace=False).tolist())
        old, trials = [unaudited(self.cells[i][0]) for i in chosen], [self.cells[i][1] for i in chosen]
        with tempfile.TemporaryDirectory(prefix="fedsim-verify-") as scratch:
            store = ResultStore(Path(scratch))
            with engine, make_display(console, len(trials)) as display:
                Scheduler(self.prepared, store, display).run(trials)
            new = Run(store.rows(), store.rounds())
        comparison = compare(Run(old, ResultStore(self.folder).rounds()), new)
        Compared((self.folder, Path("the cells run again")), comparison).show(console)
        equal = sum(each.seeds for each in comparison.matched if each.equal) == len(old)
        if not equal:
            now = hardware()
            for name in [name for name in now if self.hardware.get(name) != now[name]]:
                console.print(Text(f"{name}: {self.hardware.get(name)} → {now[name]}"), soft_wrap=True)
        result = "equal to the last bit in rows and rounds" if equal else "they differ"
        console.print(Text(f"{len(old)} of {len(self.cells)} finished cells run again: {result}"), soft_wrap=True)
        return equal
