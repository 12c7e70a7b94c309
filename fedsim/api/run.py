"""A run folder: its results as frames, pictures and tables, its generators, and what can be done
with it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.errors import UserError, check_choice, nearest
from fedsim.interrupts import kept_handlers
from fedsim.results.store import RunFolder
from fedsim.words import Printed, plain_console, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

    from fedsim.report.board import Board
    from fedsim.report.tables import Table
    from fedsim.results.columns import Row
    from fedsim.results.generators import SavedGenerator
    from fedsim.results.join import RunResults

Order = Literal["given", "best", "name"]
Spread = Literal["ci95", "sd", "range"]
TableFormat = Literal["md", "latex", "html", "csv"]
TableName = Literal["results", "differences", "private", "sites"]


@dataclass(frozen=True, repr=False)
class Found(Printed):
    """What a check, an audit or a proof found.

    Attributes:
        passed: whether nothing speaks against the claim, which proves nothing of a check or an
            audit.
        parts: lines, tables and what prints itself, from top to bottom.
    """

    passed: bool
    parts: tuple[Any, ...]

    @property
    def code(self) -> int:
        """The command's exit code."""
        if self.passed:
            return 0
        return 1

    def show(self, console: Console) -> None:
        """Print it."""
        for part in self.parts:
            if isinstance(part, Printed):
                part.show(wide_console(console))
            elif isinstance(part, str):
                print_line(console, part)
            else:
                console.print(part)


@dataclass(frozen=True, repr=False)
class Run(Printed):
    """A run folder. Every look reads its files anew.

    Attributes:
        folder: where it is.
        trust_plugin: whether code of algorithms that it names as a file, or a module that is not
            installed, may run.
        code: how the bench ended that made it: 0 if every cell is ok; 1 if one is not, a plug-in
            was left out, or the cluster was lost.
    """

    folder: Path
    trust_plugin: bool = False
    code: int = 0

    @property
    def rows(self) -> pd.DataFrame:
        """A row a cell that the page shows, as ``results.jsonl`` has them; parameters are
        ``params.NAME``.
        """
        from fedsim.results.columns import frame_of

        return frame_of(self._results.rows)

    @property
    def rounds(self) -> pd.DataFrame:
        """A row a round of each of these cells: diagnostics, not private."""
        return self._lines(self._results.rounds())

    @property
    def clients(self) -> pd.DataFrame:
        """A row a client of the cells that were judged by clients (``evaluation: {per_client:
        true}``).
        """
        return self._lines(self._results.clients())

    @property
    def audits(self) -> pd.DataFrame:
        """A row a cell whose claim was audited, with the bounds that ``audits.jsonl`` has."""
        return self._lines(self._results.audit_lines())

    def _lines(self, lines: list[dict[str, Any]]) -> pd.DataFrame:
        from fedsim.results.columns import frame_of_lines

        return frame_of_lines(lines, self._results.rows)

    def figure(
        self,
        *beside: Path | str,
        measure: str = "balanced_accuracy",
        where: str | None = None,
        over: str = "epsilon",
        width: float | None = None,
        spread: Spread = "ci95",
    ) -> Figure:
        """The privacy-utility curves, or a measure over something else: a figure to change at will;
        arguments as of :meth:`report`.
        """
        from fedsim.report.figures import over_parameter, utility
        from fedsim.results.stats import SeedGroups

        rows = pooled([self.folder, *beside], where)
        if over == "epsilon":
            drawn = utility(SeedGroups.of(rows, spread), measure, width)
        else:
            drawn = over_parameter(rows, over, measure, width)
        if drawn is None:
            raise UserError(
                "measure",
                f"no row that is ok has a {measure}",
                "look at status and scores in results.jsonl",
            )
        return drawn

    def table(
        self,
        *beside: Path | str,
        table: TableName = "results",
        measure: str = "balanced_accuracy",
        where: str | None = None,
        order: Order = "given",
        pair: tuple[str, str] | None = None,
        digits: int = 3,
        spread: Spread = "ci95",
    ) -> Table:
        """One table, by default a measure's mean ± 95 % confidence half-width over seeds; arguments
        as of :meth:`report`.

        Its ``texts`` and ``numbers`` are frames, and ``text("latex")`` is what a paper takes.
        """
        check_choice("table", table, get_args(TableName))
        check_choice("order", order, get_args(Order))
        import pandas as pd

        from fedsim.report.tables import chosen_pair, difference_table, results_table, site_table
        from fedsim.results.stats import SeedGroups, price_of_privacy, same_budget

        settings = SeedGroups.of(pooled([self.folder, *beside], where), spread)
        if table == "sites":
            shown = site_table(
                settings,
                pd.concat([Run(Path(folder)).clients for folder in (self.folder, *beside)]),
                digits,
            )
        elif table == "results" and pair is None:
            shown = results_table(settings, measure, order, digits)
        else:
            for label in pair or ():
                if label not in (known := list(settings.facts["label"].unique())):
                    raise UserError("pair", f"there is no method '{label}'", nearest(label, known))
            if pair:
                compared = chosen_pair(*pair)
            elif table == "private":
                compared = price_of_privacy
            else:
                compared = same_budget
            shown = difference_table(settings, measure, digits, compared)
        if shown is None and table == "sites":
            raise UserError(
                "table",
                "there is nothing to show: no scores by site",
                "give evaluation: {per_client: true}",
            )
        if shown is None:
            raise UserError(
                "table",
                f"two seeds of {measure} are needed to compare methods",
                "give seeds: 0-4, and look at status",
            )
        return shown

    def differences(
        self,
        first: str,
        second: str,
        *,
        measure: str = "balanced_accuracy",
        where: str | None = None,
    ) -> pd.DataFrame:
        """The first method minus the second, paired by seed, as numbers: a line a place and budget.

        Args:
            first: a label.
            second: another; at one budget, and where the first has noise also the second without.
            measure: a score of a row.
            where: which rows, as pandas' ``query`` has it.

        Returns:
            Place, budget, mean, half-width of its 95 % confidence interval, number of seeds, p of
            the paired t-test and Holm's correction.

        Raises:
            UserError: there is no such method, or they do not share two seeds.
        """
        return self.table(
            table="differences", pair=(first, second), measure=measure, where=where
        ).numbers

    @property
    def tidy(self) -> pd.DataFrame:
        """A line a score of a cell that is ok: method, data set, alpha, clients, epsilon, seed,
        measure, score.
        """
        from fedsim.evaluation.measures import MEASURES

        rows = self.rows.query("status == 'ok'").rename(
            columns={"label": "method", "epsilon_target": "epsilon"}
        )
        places = ["method", "dataset", "alpha", "clients", "epsilon", "seed"]
        return (
            rows.melt(places, [*MEASURES], "measure", "score")
            .dropna(subset="score")
            .reset_index(drop=True)
        )

    def report(
        self,
        *beside: Path,
        format: TableFormat | None = None,
        table: TableName | None = None,
        measure: str | None = None,
        where: str | None = None,
        order: Order = "given",
        pair: tuple[str, str] | None = None,
        digits: int = 3,
        figure: Path | None = None,
        over: str = "epsilon",
        width: str = "column",
        spread: Spread = "ci95",
    ) -> Printed | str:
        """Draw a run's page again, or one table or figure.

        Args:
            beside: more run folders, whose rows are shown together with the first one's, in one
                table or figure.
            format: print the main table, or the one that is chosen, and draw nothing.
            table: one table: ``results``; ``differences``, paired by seed; ``private``, private
                methods minus others; ``sites``.
            measure: a score of a row, such as knn_balanced_accuracy; default: balanced_accuracy.
            where: which rows, as pandas' ``query`` has it: "label != 'dp-gmm' and epsilon_target <
                8".
            order: of methods: as in the grid, best first, or by name.
            pair: two labels: paired tests of the first minus the second.
            digits: behind the decimal point.
            figure: draw one figure into this PDF file, its text as text.
            over: the figure's x axis: ``epsilon``, a scanned parameter, ``bytes`` or ``seconds``.
            width: of the figure: ``column`` (8.5 cm), ``page`` (17.8 cm), or inches.
            spread: what stands beside means over seeds: 95 % confidence interval, standard
                deviation, or least to most.

        Raises:
            UserError: there is no such measure or method, or nothing to show.
        """
        chosen: dict[str, Any] = {
            "measure": measure or "balanced_accuracy",
            "where": where,
            "spread": spread,
        }
        if figure is not None:
            from fedsim.report.figures import inches, save_pdf

            if Path(figure).suffix != ".pdf":
                raise UserError(
                    f"figure {figure}",
                    "is not a .pdf file",
                    f"give {Path(figure).with_suffix('.pdf')}",
                )
            picture = self.figure(*beside, over=over, width=inches(width), **chosen)
            return f"figure: {save_pdf(picture, Path(figure))}"
        if any((beside, format, table, measure, where, pair, order != "given", digits != 3)):
            shown = self.table(
                *beside, table=table or "results", order=order, pair=pair, digits=digits, **chosen
            )
            if format is None:
                return shown
            return shown.text(format)
        from fedsim.report.report import write_report

        return write_report(self.folder, spread)

    def generator(self, cell: str | None = None, synthesis: str | None = None) -> SavedGenerator:
        """The generator that a training left, or that was released; see
        :func:`fedsim.results.generators.load_generator`.
        """
        from fedsim.results.generators import load_generator

        return load_generator(self.folder, cell, synthesis, trust_plugin=self.trust_plugin)

    def synth(
        self,
        out: Path,
        *,
        format: Literal["npz", "hf"] = "npz",
        cell: str | None = None,
        synthesis: str | None = None,
        per_class: int = 200,
        seed: int | None = None,
    ) -> str:
        """Draw synthetic embeddings from a generator.

        It costs no privacy. Their scale is that of real rows of L2 norm 1, as ``embed`` writes
        them, and none is longer than 1.2: scale real rows to norm 1 before you compare.

        Args:
            out: the file of embeddings; with format hf the folder, new or empty.
            format: npz; or hf, a folder for the Hugging Face hub with its card, to be released.
            cell: the id of the cell, or its beginning, where there are several.
            synthesis: one of the algorithm's, such as neutral or mixture, or client:K; default: the
                cell's own.
            per_class: synthetic rows per class.
            seed: of the draw; default: the cell's.

        Raises:
            UserError: there is no such generator, or it is not what was saved.
        """
        if per_class < 1:
            raise UserError("per_class", f"must be at least 1, got {per_class}")
        from fedsim.results.columns import large_deltas
        from fedsim.results.generators import SCALE

        generator = self.generator(cell, synthesis)
        if format == "hf":
            from fedsim.report.dataset_card import write_hub_folder

            manifest = write_hub_folder(generator, out, per_class, seed)
        else:
            manifest = generator.save(out, per_class, seed)
        words = " ".join(
            f"{key} {manifest[key]}" for key in ("epsilon", "delta", "unit", "trust", "claim")
        )
        if why := generator.facts.held_back:
            words += f"; not for release: {why}"
        task = generator.facts.task
        lines = [
            f"{out}: {task.classes * per_class} synthetic embeddings of {task.dim} "
            f"dimensions; {words}"
        ]
        warnings = large_deltas([generator.facts.row], published=True)
        lines += [f"warning: {text}" for text in warnings]
        lines.append(f"scale: {SCALE}")
        if generator.vouched:
            lines += []
        else:
            lines += [
                "no results of a run are here to vouch for it: all this is by the package's "
                "own word"
            ]
        return "\n".join(lines)

    def release(self, out: Path, *, cell: str | None = None) -> str:
        """Write a generator that may leave the simulation.

        It leaves under its ε, as two files; it needs secret noise, and a claim that is proved, or
        stated and checked. The scale of its rows is that of real rows of L2 norm 1.

        Args:
            out: the folder of the package: tensors, and the facts about them.
            cell: the id of the cell, or its beginning, where there are several.

        Raises:
            UserError: there is no such generator, or it may not leave.
        """
        from fedsim.evidence.prove import proofs_of
        from fedsim.results.generators import SCALE, TO_LEAVE, held_back

        rows = [row for row in self._results.every_row() if row.yields == "generator"]
        whys = Counter(held_back(row, row.noise) for row in rows)
        if rows and not whys[""]:
            said = ", ".join(
                f"{why} ({count} of {len(rows)})" for why, count in whys.items() if why
            )
            raise UserError(
                str(self.folder), f"none of its generators may be released: {said}", TO_LEAVE
            )
        generator = self.generator(cell)
        facts = generator.facts
        row = generator.facts.row
        (proof,) = proofs_of([row], self._results, trust_plugin=self.trust_plugin)
        if proof.verdict != "proved":
            raise UserError(
                f"{self.folder}, cell {row.cell_id}",
                f"is not proved: {proof.why}",
                "run the cell again in a new folder",
            )
        path = generator.release(Path(out))
        assert facts.plan is not None
        return (
            f"{path}: {facts.cell.label}, ε = {facts.plan.epsilon_target:g} at δ = "
            f"{facts.plan.delta:g}, claim {facts.plan.claim}\nscale of its rows: {SCALE}"
        )

    def statement(self, *, cell: str | None = None) -> str:
        """Say each method's privacy in words.

        Unit, relation, trust, accountant, noise, rounds, sampling, and what is not covered.

        Args:
            cell: the id of the one cell to state, or its beginning; default: every method.

        Raises:
            UserError: there is no such cell, or there are several.
        """
        from fedsim.evidence.prove import proofs_of
        from fedsim.report.statement import statements

        rows = (results := self._results).rows
        ids = None
        if cell is not None:
            ids = [row.cell_id for row in rows if row.cell_id.startswith(cell)]
            if len(ids) != 1:
                raise UserError(
                    f"cell {cell}",
                    f"{len(ids) or 'no'} cells of {self.folder} have such an id",
                    "give one of results.jsonl",
                )
        stated = statements(rows, proofs_of(rows, results, trust_plugin=self.trust_plugin), ids)
        return "\n\n".join("\n".join(each.lines) for each in stated)

    def verify(self, *, rerun: int = 0, with_: Path | None = None) -> Found:
        """Prove every ε of a run by a second accountant, and every plan.

        The exit code is 1 unless every claimed ε is proved, and what ran again or is compared is
        equal to the last bit.

        Args:
            rerun: also run so many finished cells again, drawn at random, and compare rows and
                rounds.
            with_: compare with this run folder, row by row, instead.

        Raises:
            UserError: no cell can be repeated, the grid is not that of its cells, or the folders
                share nothing.
        """
        from fedsim.evidence.prove import Proofs, proofs_of
        from fedsim.report.compare import compare_folders

        results = self._results
        if with_ is not None:
            compared = compare_folders(self.folder, Path(with_))
            return Found(compared.equal, (compared,))
        found = proofs_of(results.every_row(), results, trust_plugin=self.trust_plugin)
        proofs = Proofs(self.folder.resolve().name, tuple(found))
        equal = True
        if rerun:
            from fedsim.runs.rerun import run_again

            with kept_handlers():
                equal = run_again(
                    self.folder,
                    wide_console(plain_console()),
                    rerun,
                    trust_plugin=self.trust_plugin,
                )
        return Found(proofs.sound and equal, (proofs,))

    def _repr_html_(self) -> str | None:
        """The run as a notebook shows it; None, so that its text is shown, where it has no
        results.
        """
        from fedsim.report.report import summary_html

        try:
            return summary_html(self.folder)
        except UserError:
            return None

    def show(self, console: Console) -> None:
        """Print the tables of results that a bench ends with."""
        from fedsim.report.report import terminal_tables
        from fedsim.report.tables import show_briefly, site_table
        from fedsim.results.stats import SeedGroups

        settings = SeedGroups.of(self._results.rows)
        tables = terminal_tables(settings, site_table(settings, self.clients))
        show_briefly(tables, self.folder, console)

    @property
    def _results(self) -> RunResults:
        from fedsim.results.join import read_results

        RunFolder(self.folder).check()
        return read_results(self.folder)


def pooled(folders: Sequence[Path | str], where: str | None = None) -> list[Row]:
    """The rows of the grids of some run folders, which pandas' ``query`` may choose from; a cell
    that several have counts once.
    """
    from fedsim.results.columns import frame_of
    from fedsim.results.join import read_results

    rows: dict[str, Row] = {}
    settings: dict[tuple[object, ...], tuple[Path | str, Row]] = {}
    for folder in folders:
        RunFolder(Path(folder)).check()
        for row in read_results(folder).rows:
            rows.setdefault(row.cell_id, row)
            setting = row.dataset, row.scheme, row.alpha, row.clients, row.label, row.epsilon_target
            place, other = settings.setdefault(setting, (folder, row))
            if name := next(
                (
                    name
                    for name in ("evaluation", "dataset_hash")
                    if getattr(other, name) != getattr(row, name)
                ),
                None,
            ):
                what = (
                    f"'{row.label}' on {row.dataset} differs in {name} from that of {place}, "
                    "so one mean would mix them"
                )
                raise UserError(
                    str(folder),
                    what,
                    "show the two runs one by one, or judge both alike and give data sets names",
                )
    try:
        kept = {*rows}
        if where is not None:
            kept = set(frame_of([*rows.values()]).query(where)["cell_id"])
    except Exception as error:  # whatever pandas makes of a text
        raise UserError(
            "where",
            f"'{where}' is not a query ({error})",
            "such as: label != 'dp-gmm' and epsilon_target < 8",
        ) from error
    return [row for id_, row in rows.items() if id_ in kept]


def board(runs: Sequence[Path], *, out: Path | None = None, trust_plugin: bool = False) -> Board:
    """Put the rows of many runs into one table.

    Only rows whose ε is proved again, and rows without a budget, stand in it. External samples
    stand under a heading of their own, which says that nobody verified their ε. All others are
    counted.

    Args:
        runs: run folders; a cell that several have counts once.
        out: also write it into this file: GitHub Markdown (.md), HTML, or CSV with a line a method
            and budget.
        trust_plugin: also rebuild plans of algorithms that are a file or a module that is not
            installed.

    Raises:
        UserError: a folder has no results, or rows that one line would average were judged in
            different ways.
    """
    from fedsim.evidence.prove import prove
    from fedsim.files import replaced
    from fedsim.report.board import EXACT, Board
    from fedsim.results.join import read_results

    as_: Any = out and Path(out).suffix[1:]
    if out is not None and as_ not in ("md", "html", "csv"):
        raise UserError(
            f"out {out}", "does not say the format", "give a file that ends in .md, .html or .csv"
        )
    lines = {cell: line for run in runs for cell, line in read_results(run).trained.items()}
    made = Board.of(
        [prove(row, lines[row.cell_id], trust_plugin=trust_plugin) for row in pooled(runs)]
    )
    if out is not None:
        with replaced(Path(out)) as part:
            part.write_text(made.table.text(as_) + "\n", encoding="utf-8")
        print_line(plain_console(), f"board: {out}; {EXACT}")
    return made


def load(folder: Path | str, *, trust_plugin: bool = False) -> Run:
    """A finished run, or one under way; also a released package, of which there is the generator
    alone.

    Args:
        folder: of the run.
        trust_plugin: also run code of algorithms that it names as a file, or a module that is not
            installed.

    Raises:
        UserError: no bench has run there.
    """
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        RunFolder(path).check()
    return Run(path, trust_plugin)
