"""A run folder: its results as frames, pictures and tables, its generators, and what can be done with it again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import UserError
from fedsim.interrupts import INTERRUPTED, kept_handlers
from fedsim.plugins.notebook import take_sources
from fedsim.results.folder import RunFolder
from fedsim.words import Printed, plain_console, wide_console

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

    from fedsim.evidence.prove import Proofs
    from fedsim.report.board import Board
    from fedsim.report.choice import Order
    from fedsim.report.comparison import ComparedFolders
    from fedsim.report.report import Report
    from fedsim.report.statement import Statement
    from fedsim.report.tables import ResultsTable
    from fedsim.report.tracking import Tracker
    from fedsim.report.typeset import TableFormat
    from fedsim.results.generators import GeneratorFacts, SavedGenerator
    from fedsim.results.grid_rows import GridResults, OlderResults
    from fedsim.results.groups import Spread
    from fedsim.results.rows import Row


@dataclass(frozen=True, repr=False)
class Run(Printed):
    """A run folder. Every look reads its files anew.

    Attributes:
        folder: where it is.
        trust_plugin: whether code of algorithms that it names as a file, or a module that is not installed, may run.
        code: how the bench ended that made it: 0 if every cell is ok; 1 if one is not, a plug-in was left out, or the cluster was lost.
    """

    folder: Path
    trust_plugin: bool = False
    code: int = 0

    def __post_init__(self) -> None:
        if self.trust_plugin:
            take_sources(RunFolder(self.folder).methods)

    @property
    def rows(self) -> pd.DataFrame:
        """A row a cell of the grid that ran last here, as ``results.jsonl`` has them; parameters are ``params.NAME``."""
        from fedsim.results.frames import frame_of_rows

        return frame_of_rows(self._results.rows)

    @property
    def rounds(self) -> pd.DataFrame:
        """A row a round of each of these cells: diagnostics, not private."""
        from fedsim.results.frames import frame_of_cells

        return frame_of_cells((results := self._results).rounds(), results.rows)

    @property
    def clients(self) -> pd.DataFrame:
        """A row a client of the cells that were judged by clients (``evaluation: {per_client: true}``)."""
        from fedsim.results.frames import frame_of_cells

        return frame_of_cells((results := self._results).clients(), results.rows)

    @property
    def audits(self) -> pd.DataFrame:
        """A row a cell whose claim was audited, with the bounds that ``audits.jsonl`` has."""
        from fedsim.results.frames import frame_of_cells

        return frame_of_cells((results := self._results).audits(), results.rows)

    def curves(
        self,
        *,
        measure: str = "balanced_accuracy",
        methods: Sequence[str] | None = None,
        order: Order = "given",
        over: str = "epsilon",
        width: float | None = None,
        beside: Sequence[Path | str] = (),
        spread: Spread = "ci95",
    ) -> Figure:
        """The privacy-utility curves, or a measure over something else: a figure to change at will, or for :func:`fedsim.save_pdf`.

        Args:
            measure: one of :data:`fedsim.evaluation.measures.MEASURES`, such as ``knn_balanced_accuracy``.
            methods: labels of the methods to draw, or patterns such as ``fedhypevae*``; default: all.
            order: of the methods: ``given``, ``best`` or ``name``.
            over: ``epsilon``, a scanned parameter, ``bytes`` or ``seconds``.
            width: in inches; default: as in the page.
            beside: further run folders, whose rows are shown together with this one's.
            spread: what bars are over seeds: ``ci95``, ``sd`` or ``range``.

        Raises:
            UserError: there is no such measure or method, or no row that can be drawn has the measure.
        """
        from fedsim.report.choice import chosen_figure

        return chosen_figure(self._pooled(beside), measure, methods, order, over, width, spread)

    def table(
        self,
        *,
        measure: str = "balanced_accuracy",
        methods: Sequence[str] | None = None,
        order: Order = "given",
        table: str = "results",
        pair: tuple[str, str] | None = None,
        digits: int = 3,
        beside: Sequence[Path | str] = (),
        spread: Spread = "ci95",
        format: TableFormat | None = None,
    ) -> Any:
        """One table, by default a measure's mean ± 95 % confidence half-width over seeds: a frame of texts, or one text.

        Args:
            measure: as in :meth:`curves`.
            methods: as in :meth:`curves`.
            order: as in :meth:`curves`.
            table: ``results``, ``differences`` (paired, at one budget), ``private`` (private methods minus those without noise) or
                ``sites`` (balanced accuracy by site).
            pair: two labels: the table of their differences.
            digits: behind the decimal point.
            beside: as in :meth:`curves`.
            spread: as in :meth:`curves`.
            format: ``md``, ``latex`` or ``csv``.

        Raises:
            UserError: there is no such measure, method or table, or it is empty.
        """
        from fedsim.report.typeset import typeset

        shown = self.chosen(measure, methods, order, table, pair, digits, beside, spread)
        if format is not None:
            return typeset([shown], format)
        import pandas as pd

        lines = [(block.place, *shown.names(line), *line.values) for block in shown.blocks for line in block.lines]
        frame = pd.DataFrame(lines, columns=["where", *shown.heads, *shown.columns]).set_index(["where", *shown.heads])
        return frame.droplevel("where") if len(shown.blocks) < 2 else frame

    def chosen(
        self,
        measure: str,
        methods: Sequence[str] | None,
        order: Order,
        table: str,
        pair: tuple[str, str] | None,
        digits: int,
        beside: Sequence[Path | str],
        spread: Spread,
    ) -> ResultsTable:
        """The table of :meth:`table` before it is typeset."""
        from fedsim.report.choice import chosen_groups, chosen_table
        from fedsim.results.grid_rows import read_results

        groups = chosen_groups(self._pooled(beside), measure, methods, order, spread)
        clients = [line for folder in (self.folder, *beside) for line in read_results(folder).clients()] if table == "sites" else ()
        return chosen_table(groups, measure, table, digits, pair, clients)

    def generator(self, cell: str | None = None, synthesis: str | None = None) -> SavedGenerator:
        """The generator that a training left, or that was released; see :func:`fedsim.results.generators.load_generator`."""
        from fedsim.results.generators import load_generator

        return load_generator(self.folder, cell, synthesis, trust_plugin=self.trust_plugin)

    def hub_folder(
        self, generator: SavedGenerator, out: Path | str, per_class: int = 200, seed: int | None = None, repository: str | None = None
    ) -> dict[str, Any]:
        """Write synthetic rows as a folder for the hub; see :func:`fedsim.report.dataset_card.write_hub_folder`."""
        from fedsim.report.dataset_card import write_hub_folder

        return write_hub_folder(generator, out, per_class, seed, repository)

    def release(self, out: Path | str, cell: str | None = None) -> tuple[Path, GeneratorFacts]:
        """Write a generator that may leave the simulation; see :func:`fedsim.results.generators.release`."""
        from fedsim.results.generators import release

        return release(self.folder, cell, Path(out), trust_plugin=self.trust_plugin)

    def statement(self, cell: str) -> Statement:
        """The privacy statement of a cell, given by its id or its beginning.

        Raises:
            UserError: there is no such cell, or there are several.
        """
        ids = [row.cell_id for row in self._results.rows if row.cell_id.startswith(cell)]
        if len(ids) != 1:
            raise UserError(cell, f"{len(ids) or 'no'} cells of {self.folder} have such an id", "give one of `rows.cell_id`")
        (one,) = self._statements(ids)
        return one

    def statements(self) -> list[Statement]:
        """The privacy statement of every method."""
        return self._statements(None)

    def _statements(self, only: Collection[str] | None) -> list[Statement]:
        from fedsim.report.statement import statements
        from fedsim.results.contradictions import cross_check

        return statements(self._results.rows, lambda row: cross_check(row, trust_plugin=self.trust_plugin), only)

    def report(self, spread: Spread = "ci95") -> Report:
        """Draw summary, curves and page again; see :func:`fedsim.report.report.write_report`."""
        from fedsim.report.report import write_report

        return write_report(self.folder, spread)

    def tables(self, format: TableFormat, spread: Spread = "ci95") -> str:
        """All tables of the page in Markdown, LaTeX or CSV."""
        from fedsim.report.report import page_tables
        from fedsim.report.typeset import typeset

        return typeset(page_tables(self.folder, spread), format)

    def export(self, to: Tracker, out: Path | str | None = None) -> tuple[Path, int]:
        """Write the cells for an experiment tracker; see :func:`fedsim.report.tracking.export`."""
        from fedsim.report.tracking import export

        return export(self.folder, to, out)

    def compare(self, other: Run | Path | str) -> ComparedFolders:
        """Match the rows of two runs; see :func:`fedsim.report.comparison.compare_folders`."""
        from fedsim.report.comparison import compare_folders

        return compare_folders(self.folder, other.folder if isinstance(other, Run) else Path(other))

    def prove(self) -> Proofs:
        """Recompute every ε from its row, with dp-accounting, and every plan."""
        from fedsim.evidence.prove import Proofs, prove
        from fedsim.results.grid_rows import every_row

        RunFolder(self.folder).check()
        return Proofs(self.folder.resolve().name, tuple(prove(row, trust_plugin=self.trust_plugin) for row in every_row(self.folder)))

    def verify(self, cells: int = 3, ids: Sequence[str] = ()) -> bool:
        """Run some finished cells again and print what differs; whether rows and rounds are equal to the last bit.

        Args:
            cells: how many, drawn at random.
            ids: instead of these, the cells whose ids begin with one of them.

        Raises:
            UserError: no cell can be repeated, or the grid is not that of its cells.
        """
        from fedsim.planning.prepare import prepare
        from fedsim.runs.cluster import this_machine
        from fedsim.runs.ray_engine import local_ray
        from fedsim.runs.verify import Verification

        node = this_machine()
        with kept_handlers():
            verification = Verification.of(self.folder, lambda grid: prepare(grid, [node]), trust_plugin=self.trust_plugin)
            return verification.run(cells, wide_console(plain_console()), local_ray(node), ids)

    def audit(self, cell: str | None = None) -> Iterator[str]:
        """How well membership in the training rows can be inferred from the run's generators: sentences, as they are computed.

        Args:
            cell: the id of the one cell to attack, or its beginning.
        """
        from fedsim.evidence.audit.membership import attack_run
        from fedsim.results.grid_rows import read_manifest
        from fedsim.runs.manifest import grid_of

        run = RunFolder(self.folder)
        run.check()
        return iter(attack_run(run, grid_of(read_manifest(self.folder), run), cell=cell, trust_plugin=self.trust_plugin))

    def judge(self, *, address: str | None = None, max_parallel: int | None = None) -> Run:
        """Judge what the trainings made with today's readouts and references, without training, and draw the report.

        Args:
            address: of a running Ray cluster; default: start a local one.
            max_parallel: at most so many cells at a time.

        Raises:
            UserError: nothing can be judged, or another fedsim runs in the folder.
            KeyboardInterrupt: it was interrupted; the same call continues it.
        """
        with kept_handlers():
            return ended(self.folder, self.judged(address, max_parallel), trust_plugin=self.trust_plugin)

    def judged(self, address: str | None, max_parallel: int | None) -> int:
        """The same; the exit code of the command."""
        from fedsim.grid.resolve import plug_in_files
        from fedsim.runs.bench import algorithms_of, run_judging
        from fedsim.runs.cluster import joined_cluster, this_machine
        from fedsim.runs.ray_engine import connected_ray, local_ray

        console, node = plain_console(), this_machine()
        with ExitStack() as stack:
            files = plug_in_files(algorithms_of(self.folder)) if address is not None and self.trust_plugin else ()
            nodes = [node] if address is None else stack.enter_context(joined_cluster(address, files))
            engine = local_ray(node) if address is None else connected_ray()
            return run_judging(self.folder, nodes, console, engine, max_parallel, trust_plugin=self.trust_plugin)

    def show(self, console: Console) -> None:
        """Print the tables of results that a bench ends with."""
        from fedsim.report.sites import site_tables
        from fedsim.report.tables import rich_tables
        from fedsim.results.grid_rows import read_results
        from fedsim.results.groups import group_seeds

        groups = group_seeds((results := read_results(self.folder)).rows)
        shown = rich_tables(groups, site_tables(groups, results.clients())) if groups else f"no results in {self.folder}"
        console.print(shown)

    @property
    def _results(self) -> GridResults | OlderResults:
        from fedsim.results.grid_rows import read_results

        RunFolder(self.folder).check()
        return read_results(self.folder)

    def _pooled(self, beside: Sequence[Path | str]) -> list[Row]:
        from fedsim.report.choice import pooled_rows

        return pooled_rows([self.folder, *beside])


def board(runs: Sequence[Path | str], *, trust_plugin: bool = False) -> Board:
    """One table over several runs, of rows whose epsilon :meth:`Run.prove` finds again and of rows without a budget, and of no others.

    Args:
        runs: their folders; a cell that several have counts once.
        trust_plugin: also rebuild plans of algorithms that are a file or a module that is not installed.

    Raises:
        UserError: a folder has no results, or rows that one line would average were judged in different ways.
    """
    from fedsim.evidence.prove import prove
    from fedsim.report.board import Board
    from fedsim.report.choice import pooled_rows

    return Board.of([prove(row, trust_plugin=trust_plugin) for row in pooled_rows(runs)])


def load(folder: Path | str, *, trust_plugin: bool = False) -> Run:
    """A finished run, or one under way; also a released package, of which there is the generator alone.

    Args:
        folder: of the run.
        trust_plugin: also run code of algorithms that it names as a file, or a module that is not installed.

    Raises:
        UserError: no bench has run there.
    """
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        RunFolder(path).check()
    return Run(path, trust_plugin)


def ended(folder: Path, code: int, *, trust_plugin: bool) -> Run:
    """The run that ended with an exit code.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return Run(folder, trust_plugin, code)
