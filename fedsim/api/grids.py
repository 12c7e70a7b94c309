"""Grids: run one, or see what it would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.api.run import Run, ended
from fedsim.errors import UserError
from fedsim.interrupts import INTERRUPTED, kept_handlers
from fedsim.plugins.registry import find_in_working_folder
from fedsim.words import Printed, plain_console, print_line

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

    from fedsim.grid.models import Grid
    from fedsim.partition.matrix import LabelMatrix
    from fedsim.planning.prepare import Prepared
    from fedsim.runs.engine import Engine

GridLike = Path | str | Mapping[str, Any]
"""A grid file, or a mapping as one has it."""
Replacements = Mapping[str, Any] | Sequence[str]
"""Values that replace a grid's, by key, or as ``key=YAML`` texts."""


def bench(
    grid: GridLike,
    *,
    out: Path | str | None = None,
    set: Replacements = (),
    algorithms: Iterable[Any] = (),
    address: str | None = None,
    max_parallel: int | None = None,
    retry_failed: bool = False,
    keep_going: bool = False,
    in_process: bool = False,
) -> Run:
    """Run a grid: every algorithm on every partition, budget and seed; then draw the privacy-utility curves.

    Called again, it runs what its folder lacks: cells that an interruption or a larger grid left, and those whose code has changed.

    Args:
        grid: a grid file, or a mapping as one has it, whose paths are relative to the working folder.
        out: the run folder; default: ``runs/<name of the grid>``.
        set: values that replace the grid's: ``{"alpha": [0.3], "resources.device": "cpu"}``.
        algorithms: more methods: names, mappings of ``name``, ``params`` and ``label``, or classes, also those that a notebook defines.
        address: of a running Ray cluster; default: start a local one.
        max_parallel: at most so many cells at a time.
        retry_failed: run failed cells again.
        keep_going: leave out algorithms whose plug-in is refused.
        in_process: run one cell after another in this process, without Ray.

    Returns:
        The run; its code of plug-ins, which ran here, is trusted.

    Raises:
        UserError: a mistake, in the words of the command line; nothing was written.
        KeyboardInterrupt: it was interrupted; what is finished is kept.
    """
    how: dict[str, Any] = {"max_parallel": max_parallel, "retry_failed": retry_failed, "keep_going": keep_going, "in_process": in_process}
    return _run(_checked(grid, set, algorithms), out=out, address=address, **how)


def _run(grid: Grid, *, out: Path | str | None = None, address: str | None = None, **how: Any) -> Run:
    folder = Path("runs") / grid.name if out is None else Path(out)
    with kept_handlers():
        return ended(folder, run_grid(grid, folder, address, **how), trust_plugin=True)


def tune(grid: GridLike, *, compare: bool = False, set: Replacements = (), algorithms: Iterable[Any] = (), **how: Any) -> Run:
    """Tune a grid's parameters within its budgets: epsilon pays for the whole search over the values of ``tune`` and ``scan``.

    Args:
        grid: as of :func:`bench`.
        compare: also run each method with the parameters of its entry, and tuned for free on test rows.
        set: as of :func:`bench`.
        algorithms: as of :func:`bench`.
        how: the other arguments of :func:`bench`.

    Raises:
        UserError: as :func:`bench`, or no parameter has values to choose from.
    """
    return _run(_checked(grid, set, algorithms).tuned(compare=compare), **how)


def run_grid(
    grid: Grid,
    folder: Path,
    address: str | None,
    *,
    max_parallel: int | None = None,
    retry_failed: bool = False,
    keep_going: bool = False,
    dry_run: bool = False,
    in_process: bool = False,
) -> int:
    """Run a grid, or print its plan; the exit code says how it went. Arguments as of :func:`bench`."""
    if in_process and address is not None:
        raise UserError("--in-process", "runs nothing on a cluster", "leave out --address or --in-process")
    from fedsim.results.store import ResultStore

    if not dry_run:  # before anything that takes time
        ResultStore(folder).check_free()
    from fedsim.grid.resolve import plug_in_files, resolve
    from fedsim.planning.prepare import prepare
    from fedsim.report.plan_table import show_plan
    from fedsim.runs.bench import run_bench
    from fedsim.runs.cluster import joined_cluster, this_machine
    from fedsim.runs.display import Preparing
    from fedsim.runs.engine import InProcess
    from fedsim.runs.ray_engine import connected_ray, everywhere, local_ray

    console = plain_console()
    with ExitStack() as stack:
        node = this_machine()
        try:
            with Preparing(plain_console(stderr=True)) as tell:
                nodes, rehearsal = [node], None
                if address is not None:
                    files = plug_in_files(variant.name for variant in resolve(grid, keep_going=keep_going).variants)
                    nodes, rehearsal = stack.enter_context(joined_cluster(address, files)), everywhere
                if in_process:
                    grid, max_parallel = one_by_one(grid), 1
                prepared = prepare(grid, nodes, max_parallel, keep_going=keep_going, rehearsal=rehearsal, tell=tell)
        except KeyboardInterrupt:
            print_line(console, "interrupted; the same command goes on")
            return INTERRUPTED
        if dry_run:
            show_plan(prepared, console)
            return 1 if prepared.refused else 0
        # A local cluster starts only when there is something to run on it.
        engine: AbstractContextManager[Engine] = connected_ray() if address is not None else local_ray(node)
        engine = nullcontext(InProcess(node)) if in_process else engine
        return run_bench(prepared, folder, console, engine, retry_failed=retry_failed)


def one_by_one(grid: Grid) -> Grid:
    """The grid with all clients of a cell on one actor."""
    resources = grid.resources.model_copy(update={"clients_per_actor": "all"})
    return grid.model_copy(update={"resources": resources})


def _checked(grid: GridLike, set: Replacements, algorithms: Iterable[Any]) -> Grid:
    from fedsim.grid.read import load_grid

    find_in_working_folder()
    return load_grid(grid, set, algorithms)


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """What a grid would run, and the noise that it would add."""

    prepared: Prepared

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell, in the columns of :attr:`fedsim.api.run.Run.rows` that are known before it runs."""
        from fedsim.results.frames import frame_of_rows
        from fedsim.runs.verify import blank_row

        frame = frame_of_rows([blank_row(trial) for trial in self.prepared.trials])
        return frame.drop(columns=["status", "error"]).dropna(axis="columns", how="all")

    def show(self, console: Console) -> None:
        """Print the noise."""
        from fedsim.report.noise_table import show_noise

        show_noise(self.prepared, console)


def plan(grid: GridLike, *, set: Replacements = (), algorithms: Iterable[Any] = ()) -> Plan:
    """What a grid would run and what noise each statistic and gradient would get, without training; arguments as of :func:`bench`.

    Raises:
        UserError: a mistake.
    """
    from fedsim.planning.prepare import prepare
    from fedsim.runs.cluster import this_machine

    return Plan(prepare(_checked(grid, set, algorithms), [this_machine()]))


@dataclass(frozen=True, repr=False)
class Partitions(Printed):
    """How a grid divides its data among clients.

    Attributes:
        name: of the grid.
        matrices: the label-by-client matrix of every partition, in the grid's order.
    """

    name: str
    matrices: tuple[LabelMatrix, ...]

    @property
    def counts(self) -> pd.DataFrame:
        """A row a client of every partition: rows of each class, ``class.NAME``, and in all. Exact, not private."""
        from fedsim.results.frames import frame_of

        place = ("dataset", "scheme", "alpha", "clients", "seed", "fingerprint")
        records = [
            {name: getattr(matrix, name) for name in place}
            | {"client": client, "rows": int(counts.sum())}
            | {f"class.{name}": int(count) for name, count in zip(matrix.classes, counts, strict=True)}
            for matrix in self.matrices
            for client, counts in enumerate(matrix.counts)
        ]
        return frame_of(records, (*place, "client", "rows"))

    def draw(self) -> Figure:
        """A panel for every partition of the first seed, at most 12: classes down, clients across, dark where many rows are."""
        from fedsim.report.partitions import draw_partitions

        figure = draw_partitions(self.matrices)
        assert figure is not None  # a grid has a partition
        return figure

    def show(self, console: Console) -> None:
        """Print a line for every partition."""
        from fedsim.report.partitions import summary_table

        console.print(summary_table(self.matrices))


def partition(grid: GridLike, *, set: Replacements = (), algorithms: Iterable[Any] = ()) -> Partitions:
    """How a grid divides its data among clients, without training; arguments as of :func:`bench`.

    Raises:
        UserError: a mistake.
    """
    from fedsim.grid.resolve import resolve

    checked = resolve(_checked(grid, set, algorithms)).grid
    from fedsim.planning.label_matrices import label_matrices

    return Partitions(checked.name, tuple(label_matrices(checked)))
