"""Reads run folders: results as frames, figures and tables, and generators.

It also verifies a run, states its privacy in words, releases its generator, and puts the results of
several runs on one board.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.errors import UserError, check_choice, check_least
from fedsim.interrupts import kept_handlers
from fedsim.results.store import RunFolder
from fedsim.words import Printed, plain_console, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

    from fedsim.report.board import Board
    from fedsim.report.table import Table, TableFormat
    from fedsim.results.columns import Row
    from fedsim.results.generators import SavedGenerator
    from fedsim.results.join import RunResults
    from fedsim.results.records import TrainingRecord
    from fedsim.results.stats import SeedGroups, Spread

Order = Literal["given", "best", "name"]
SynthFormat = Literal["npz", "hf"]
TableName = Literal["results", "differences", "private", "sites", "verdict"]


@dataclass(frozen=True, repr=False)
class Found(Printed):
    """The result of a check, an audit or a proof.

    Attributes:
        passed: whether nothing wrong was found, such as a refuted claim, an ε that is not proved,
            or a difference between two runs. A check or an audit that passed proves nothing.
        parts: the lines, tables and other parts to print, from top to bottom.
    """

    passed: bool
    parts: tuple[Any, ...]

    @property
    def code(self) -> int:
        """The exit code of a command: 0 if it passed, else 1."""
        return int(not self.passed)

    def show(self, console: Console) -> None:
        """Print all parts."""
        for part in self.parts:
            if isinstance(part, Printed):
                part.show(wide_console(console))
            elif isinstance(part, str):
                print_line(console, part)
            else:
                console.print(part)


@dataclass(frozen=True, repr=False)
class Run(Printed):
    """A run folder; its files are read again at every access.

    Attributes:
        folder: the path of the folder.
        trust_plugin: whether the code of an algorithm may run if it is a file, or a module that is
            not installed.
        code: how the bench ended: 0 if every cell is ok, or the folder was only loaded; 1 if a cell
            is not ok, a plug-in was left out, or the cluster was lost.
    """

    folder: Path
    trust_plugin: bool = False
    code: int = 0

    @property
    def rows(self) -> pd.DataFrame:
        """A frame with one row per cell of the page and the columns of ``results.jsonl``.

        A parameter has the column ``params.NAME``.
        """
        from fedsim.results.columns import frame_of

        return frame_of(self._results.rows)

    @property
    def rounds(self) -> pd.DataFrame:
        """A frame with one row per round and cell; it contains private information."""
        return self._frame(lambda results: results.rounds())

    @property
    def clients(self) -> pd.DataFrame:
        """A frame with one row per client and cell, for grids with ``per_client: true``."""
        return self._frame(lambda results: results.clients())

    @property
    def audits(self) -> pd.DataFrame:
        """A frame with one row per audited cell and the bounds of ``audits.jsonl``."""
        return self._frame(lambda results: results.audit_lines())

    def _frame(self, lines_of: Callable[[RunResults], list[dict[str, Any]]]) -> pd.DataFrame:
        """Return lines of the run as a frame, with the settings of their cells.

        Lines and cells are of one reading of the folder, since a bench may be writing into it.
        """
        from fedsim.results.columns import frame_of_lines

        results = self._results
        return frame_of_lines(lines_of(results), results.rows)

    def figure(
        self,
        *beside: Path | str,
        measure: str = "balanced_accuracy",
        where: str | None = None,
        over: str = "epsilon",
        width: float | None = None,
        spread: Spread = "ci95",
    ) -> Figure:
        """Return a matplotlib figure of scores over ε or another quantity; change it freely.

        Args:
            beside: more run folders, whose results are shown together with this one's.
            measure: the score on the y axis.
            where: which results to show, in the syntax of pandas' ``query``.
            over: the x axis: ``epsilon``, a scanned parameter, ``bytes`` or ``seconds``.
            width: the width in inches; default: that of a column of a paper.
            spread: the spread beside a mean over seeds, as in :meth:`report`.

        Raises:
            UserError: no finished cell has such a score.
        """
        from fedsim.report.figures import over_parameter, utility
        from fedsim.results.join import published_in
        from fedsim.results.stats import SeedGroups

        rows = pooled(_results_of([self.folder, *beside]), where)
        if over == "epsilon":
            published = published_in(self.folder, *beside)
            figure = utility(SeedGroups.of(rows, spread, published), measure, width)
        else:
            figure = over_parameter(rows, over, measure, width)
        if figure is None:
            raise UserError(
                "measure",
                f"no finished cell has the score {measure}",
                "look at status and scores in results.jsonl",
            )
        return figure

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
        subject: str | None = None,
    ) -> Table:
        """Return one table, by default of each method's mean score over seeds.

        The result holds the table as two frames, ``texts`` and ``numbers``. Its method
        ``text("latex")`` returns the table for a paper.

        Args:
            beside: more run folders, whose results are shown together with this one's.
            table: ``results``; ``differences``, paired by seed; ``private``, private methods minus
                others; ``sites``; or ``verdict``, methods by all measures at once.
            measure: the score to show; a verdict shows all.
            where: which results to show, in the syntax of pandas' ``query``.
            order: the order of the methods: as in the grid (``given``), ``best`` first, or by
                ``name``.
            pair: two labels of methods to compare: the first minus the second.
            digits: the number of digits after the decimal point.
            spread: the spread beside a mean over seeds, as in :meth:`report`.
            subject: the label of the method that a verdict compares with its rivals.

        Raises:
            UserError: there is no such method or table, or nothing to show.
        """
        check_choice("table", table, get_args(TableName))
        check_choice("order", order, get_args(Order))
        check_least("digits", digits, 0)
        from fedsim.report.tables import results_table
        from fedsim.results.join import published_in
        from fedsim.results.stats import SeedGroups

        folders = [self.folder, *beside]
        rows = pooled(_results_of(folders), where)
        settings = SeedGroups.of(rows, spread, published_in(*folders))
        if table == "sites":
            return _table_of_sites(settings, folders, digits)
        if table == "verdict" or subject:
            return _table_of_verdict(settings, digits, subject)
        if table == "results" and pair is None:
            return results_table(settings, measure, order, digits)
        return _table_of_differences(settings, measure, digits, table, pair)

    def differences(
        self,
        first: str,
        second: str,
        *,
        measure: str = "balanced_accuracy",
        where: str | None = None,
    ) -> pd.DataFrame:
        """Return the score of one method minus that of another, paired by seed.

        The frame has one row per partition and budget.

        Args:
            first: the label of a method.
            second: the label of another method. Results of both with the same budget are compared,
                and private results of the first with results of the second without noise.
            measure: the score to compare.
            where: which results to compare, in the syntax of pandas' ``query``.

        Returns:
            Place, budget, mean difference, half-width of its 95 % confidence interval, number of
            seeds, and p of the paired t-test, also with Holm's correction.

        Raises:
            UserError: there is no such method, or the two do not share two seeds.
        """
        return self.table(
            table="differences", pair=(first, second), measure=measure, where=where
        ).numbers

    @property
    def tidy(self) -> pd.DataFrame:
        """A frame in long format: one row per score of a finished cell.

        Its columns are method, dataset, alpha, clients, epsilon, seed, measure and score.
        """
        from fedsim.evaluation.measures import MEASURES

        finished = self.rows.query("status == 'ok'")
        renamed = finished.rename(columns={"label": "method", "epsilon_target": "epsilon"})
        id_columns = ["method", "dataset", "alpha", "clients", "epsilon", "seed"]
        scores = renamed.melt(id_columns, [*MEASURES], "measure", "score")
        return scores.dropna(subset="score").reset_index(drop=True)

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
        subject: str | None = None,
    ) -> Printed | str:
        """Draw the page of a run again, or return one table, or write one figure.

        Without an option for a table or a figure it draws the page.

        Args:
            beside: more run folders, whose results are shown together with this one's, in one table
                or figure.
            format: return a table as a text in this format, and draw nothing.
            table: one table: ``results``; ``differences``, paired by seed; ``private``, private
                methods minus others; ``sites``; ``verdict``, methods by all measures at once.
            measure: the score to show, such as knn_balanced_accuracy; default: balanced_accuracy.
            where: which results to show, in the syntax of pandas' ``query``: "label != 'dp-gmm' and
                epsilon_target < 8".
            order: the order of the methods: as in the grid (``given``), ``best`` first, or by
                ``name``.
            pair: two labels of methods to compare with paired tests: the first minus the second.
            digits: the number of digits after the decimal point.
            figure: write one figure to this PDF file, with its text as text.
            over: the x axis of the figure: ``epsilon``, a scanned parameter, ``bytes`` or
                ``seconds``.
            width: the width of the figure: ``column`` (8.5 cm), ``page`` (17.8 cm), or inches.
            spread: the spread beside a mean over seeds: the 95 % confidence interval (``ci95``),
                the standard deviation (``sd``), or the smallest and largest value (``range``).
            subject: the label of the method that a verdict compares with each rival; default: the
                first method of the grid.

        Returns:
            The page's summary, the table, the table's text, or the path of the figure.

        Raises:
            UserError: there is no such measure or method, or nothing to show.
        """
        chosen: dict[str, Any] = {
            "measure": measure or "balanced_accuracy",
            "where": where,
            "spread": spread,
        }
        if figure is not None:
            from fedsim.report.panels import inches, save_pdf

            target = Path(figure)
            if target.suffix != ".pdf":
                raise UserError(
                    f"figure {figure}",
                    "is not a .pdf file",
                    f"give {target.with_suffix('.pdf')}",
                )
            picture = self.figure(*beside, over=over, width=inches(width), **chosen)
            return f"figure: {save_pdf(picture, target)}"
        # Each of these options, or another value than the default, asks for a table.
        asks_for_table = any((beside, format, table, measure, where, pair, subject))
        if asks_for_table or order != "given" or digits != 3:
            shown = self.table(
                *beside,
                table=table or "results",
                order=order,
                pair=pair,
                digits=digits,
                subject=subject,
                **chosen,
            )
            if format is None:
                return shown
            return shown.text(format)
        from fedsim.report.report import write_report

        return write_report(self.folder, spread)

    def generator(self, cell: str | None = None, synthesis: str | None = None) -> SavedGenerator:
        """Return the generator of a training, or that of a released package.

        See :func:`fedsim.results.generators.load_generator`.

        Args:
            cell: the id of the cell, or its beginning; needed if there are several generators.
            synthesis: how the algorithm synthesises, such as neutral or mixture, or client:K for
                the generator of one client; default: the cell's own.

        Raises:
            UserError: there is no such generator, or its file has changed since it was saved.
        """
        from fedsim.results.generators import load_generator

        return load_generator(
            self.folder,
            cell,
            synthesis,
            trust_plugin=self.trust_plugin,
        )

    def synth(
        self,
        out: Path,
        *,
        format: SynthFormat = "npz",
        cell: str | None = None,
        synthesis: str | None = None,
        per_class: int = 200,
        seed: int | None = None,
    ) -> str:
        """Draw synthetic embeddings from a generator and write them to a file.

        Drawing costs no privacy. The embeddings have the scale of real embeddings of L2 norm 1, as
        :func:`fedsim.embed` writes them, and none is longer than 1.2. Scale real embeddings to norm
        1 before you compare them.

        Args:
            out: the file of embeddings; with format hf a folder that is new or empty.
            format: npz, or hf for a folder with a card, ready for the Hugging Face hub.
            cell: the id of the cell, or its beginning; needed if there are several generators.
            synthesis: how the algorithm synthesises, such as neutral or mixture, or client:K for
                the generator of one client; default: the cell's own.
            per_class: the number of embeddings per class.
            seed: the seed of the draw; default: the cell's.

        Returns:
            A description of the file: its size, its ε, warnings, and its scale.

        Raises:
            UserError: there is no such generator, or its file has changed since it was saved.
        """
        check_choice("format", format, get_args(SynthFormat))
        check_least("per_class", per_class, 1)
        check_least("seed", seed, 0)
        from fedsim.results.columns import large_deltas
        from fedsim.results.generators import SCALE

        generator = self.generator(cell, synthesis)
        if format == "hf":
            from fedsim.report.dataset_card import write_hub_folder

            manifest = write_hub_folder(generator, out, per_class, seed)
        else:
            manifest = generator.save(out, per_class, seed)
        privacy = ("epsilon", "delta", "unit", "trust", "claim")
        privacy_text = " ".join(f"{key} {manifest[key]}" for key in privacy)
        facts = generator.facts
        if facts.held_back:
            privacy_text += f"; not for release: {facts.held_back}"
        count = facts.task.classes * per_class
        lines = [
            f"{out}: {count} synthetic embeddings of {facts.task.dim} dimensions; {privacy_text}"
        ]
        for text in large_deltas([facts.row], published=True):
            lines.append(f"warning: {text}")
        lines.append(f"scale: {SCALE}")
        if not generator.vouched:
            lines.append("unverified: the package states these facts, and its run is not here")
        return "\n".join(lines)

    def release(self, out: Path, *, cell: str | None = None) -> str:
        """Write a package with a generator that may leave the simulation.

        The package has two files and states the generator's ε. The training must have used secret
        noise, and its claim must be proved, or stated and checked. The generator's embeddings have
        the scale of real embeddings of L2 norm 1.

        Args:
            out: the folder of the package.
            cell: the id of the cell, or its beginning; needed if there are several generators.

        Returns:
            The package's file with its ε, δ and claim, and the scale of its embeddings.

        Raises:
            UserError: there is no such generator, or it may not leave the simulation.
        """
        from fedsim.evidence.prove import proofs_of
        from fedsim.results.generators import SCALE, held_back

        results = self._results
        rows = [row for row in results.every_row() if row.yields == "generator"]
        reasons = Counter(map(held_back, rows))
        if rows and "" not in reasons:
            listed = "; ".join(
                f"{count} of {len(rows)}: {reason}" for reason, count in reasons.items()
            )
            raise UserError(
                str(self.folder),
                f"none of its generators may be released: {listed}",
            )
        generator = self.generator(cell)
        row = generator.facts.row
        (proof,) = proofs_of([row], results, trust_plugin=self.trust_plugin)
        if proof.verdict != "proved":
            raise UserError(
                f"{self.folder}, cell {row.cell_id}",
                f"its ε is not proved: {proof.why}",
                "if that names no remedy, run its grid again in a new folder",
            )
        path = generator.release(Path(out))
        budget = f"ε = {row.epsilon_target:g} at δ = {row.delta:g}, claim {row.plan['claim']}"
        return f"{path}: {row.label}, {budget}\nscale of its synthetic embeddings: {SCALE}"

    def statement(self, *, cell: str | None = None) -> str:
        """Return the privacy of each method in words.

        The text states unit, relation, trust, accountant, noise, rounds and sampling, and what is
        not covered.

        Args:
            cell: the id of one cell, or its beginning; default: every method.

        Raises:
            UserError: there is no such cell, or there are several.
        """
        from fedsim.evidence.prove import proofs_of
        from fedsim.report.statement import statements

        results = self._results
        ids = None
        if cell is not None:
            ids = [row.cell_id for row in results.rows if row.cell_id.startswith(cell)]
            if len(ids) != 1:
                raise UserError(
                    f"cell {cell}",
                    f"{len(ids) or 'no'} cells of {self.folder} have an id that begins so",
                    "give an id of results.jsonl",
                )
        proofs = proofs_of(results.rows, results, trust_plugin=self.trust_plugin)
        texts = statements(results.rows, proofs, ids)
        return "\n\n".join("\n".join(text.lines) for text in texts)

    def verify(self, *, rerun: int = 0, with_: Path | None = None) -> Found:
        """Recompute every ε and every plan of a run with a second, independent accountant.

        Without ``with_`` the result has passed if every claimed ε is proved and every cell that ran
        again is equal to the last bit. With it, all results must be equal to the last bit.

        Args:
            rerun: the number of finished cells, drawn at random, that run again and are compared.
            with_: a run folder whose results are compared with this run's. Then no ε is recomputed
                and no cell runs again.

        Raises:
            UserError: no cell can be repeated, the grid is not that of its cells, or the folders
                share nothing.
        """
        check_least("rerun", rerun, 0)
        from fedsim.evidence.prove import Proofs, proofs_of
        from fedsim.report.compare import compare_folders

        results = self._results
        if with_ is not None:
            compared = compare_folders(self.folder, Path(with_))
            return Found(compared.equal, (compared,))
        every_proof = proofs_of(
            results.every_row(),
            results,
            trust_plugin=self.trust_plugin,
        )
        proofs = Proofs(self.folder.resolve().name, tuple(every_proof))
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
        """Return the run as a notebook shows it; None, to show its text, if it has no results."""
        from fedsim.report.report import summary_html

        try:
            return summary_html(self.folder)
        except UserError:
            return None

    def show(self, console: Console) -> None:
        """Print the tables of results that a bench ends with."""
        from fedsim.report.report import terminal_tables
        from fedsim.report.table import show_briefly
        from fedsim.report.tables import site_table
        from fedsim.results.join import published_in
        from fedsim.results.stats import SeedGroups

        published = published_in(self.folder)
        settings = SeedGroups.of(self._results.rows, published=published)
        tables = terminal_tables(settings, site_table(settings, self.clients))
        show_briefly(tables, self.folder, console)

    @property
    def _results(self) -> RunResults:
        """The results of the folder, read now."""
        (results,) = _results_of([self.folder])
        return results


def _results_of(folders: Sequence[Path | str]) -> list[RunResults]:
    """Return the results of several run folders, read now.

    Raises:
        UserError: a folder has no results.
    """
    from fedsim.results.join import read_results

    for folder in folders:
        RunFolder(Path(folder)).check()
    return [read_results(folder) for folder in folders]


def _table_of_sites(settings: SeedGroups, folders: Sequence[Path | str], digits: int) -> Table:
    """Return the table of scores by site; refuse results without such scores."""
    import pandas as pd

    from fedsim.report.tables import site_table

    clients = pd.concat([Run(Path(folder)).clients for folder in folders])
    # Several folders may hold the same cell.
    clients = clients.drop_duplicates(["cell_id", "client"])
    table = site_table(settings, clients, digits)
    if table is None:
        raise UserError(
            "table",
            "no result has scores by site",
            "run the grid with evaluation: {per_client: true}",
        )
    return table


def _table_of_verdict(settings: SeedGroups, digits: int, subject: str | None) -> Table:
    """Return the table of all measures at once; refuse results that cannot be compared."""
    from fedsim.report.verdict import verdict_table

    if subject is not None:
        check_choice("subject", subject, settings.facts["label"].unique())
    table = verdict_table(settings, digits, subject)
    if table is None:
        raise UserError(
            "table",
            "no two methods have results in the same settings, so there is nothing to rank",
            "choose results with `where`, or look at their status in results.jsonl",
        )
    return table


def _table_of_differences(
    settings: SeedGroups,
    measure: str,
    digits: int,
    table: TableName,
    pair: tuple[str, str] | None,
) -> Table:
    """Return a table of differences between methods; refuse results with fewer than two seeds."""
    from fedsim.report.tables import chosen_pair, difference_table
    from fedsim.results.stats import price_of_privacy, same_budget

    if pair:
        for label in pair:
            check_choice("pair", label, settings.facts["label"].unique())
        is_compared = chosen_pair(*pair)
    elif table == "private":
        is_compared = price_of_privacy
    else:
        is_compared = same_budget
    differences = difference_table(settings, measure, digits, is_compared)
    if differences is None:
        raise UserError(
            "table",
            f"two seeds of {measure} are needed to compare methods",
            "run more seeds, such as seeds: 0-4, or look at the status of the results",
        )
    return differences


def pooled(runs: Sequence[RunResults], where: str | None = None) -> list[Row]:
    """Return the results of several runs in one list; a cell that several of them have counts once.

    Args:
        runs: the results of each run folder.
        where: which results to return, in the syntax of pandas' ``query``; default: all.

    Raises:
        UserError: the query is wrong, or results that one mean would average have different
            evaluations or data.
    """
    from fedsim.results.columns import frame_of
    from fedsim.results.stats import PLACE

    rows: dict[str, Row] = {}
    first_of_setting: dict[tuple[object, ...], tuple[Path, Row]] = {}
    for results in runs:
        folder = results.folder.path
        for row in results.rows:
            rows.setdefault(row.cell_id, row)
            # One mean averages the results of a method that have the same place and ε.
            setting = tuple(row.values[name] for name in (*PLACE, "label", "epsilon_target"))
            other_folder, other = first_of_setting.setdefault(setting, (folder, row))
            for name in ("evaluation", "dataset_hash"):
                if other.values[name] != row.values[name]:
                    raise UserError(
                        str(folder),
                        f"'{row.label}' on {row.dataset} differs in {name} from that of "
                        f"{other_folder}, so one mean would mix them",
                        "show the two runs one by one, or evaluate both alike and give data sets "
                        "names",
                    )
    if where is None:
        return list(rows.values())
    frame = frame_of(list(rows.values()))
    try:
        chosen = set(frame.query(where)["cell_id"])
    except Exception as error:  # pandas raises errors of many types for a wrong query
        raise UserError(
            "where",
            f"'{where}' is not a query ({error})",
            "give one such as: label != 'dp-gmm' and epsilon_target < 8",
        ) from error
    return [row for cell_id, row in rows.items() if cell_id in chosen]


def board(runs: Sequence[Path], *, out: Path | None = None, trust_plugin: bool = False) -> Board:
    """Return one table of the results of many runs.

    It shows only results whose ε was recomputed and proved, and results without a budget. External
    samples are shown under a heading of their own, which says that nobody verified their ε. All
    other results are only counted.

    Args:
        runs: the run folders; a cell that several of them have counts once.
        out: also write the table to this file: GitHub Markdown (.md), HTML, or CSV with one line
            per method and budget.
        trust_plugin: also run the code of an algorithm that is a file, or a module that is not
            installed, to rebuild its plan.

    Raises:
        UserError: a folder has no results, or results that one line would average were evaluated in
            different ways.
    """
    from fedsim.evidence.prove import prove
    from fedsim.files import replaced
    from fedsim.report.board import EXACT, Board

    if out is not None and Path(out).suffix not in (".md", ".html", ".csv"):
        raise UserError(
            f"out {out}",
            "the ending of the file does not say its format",
            "give a file that ends in .md, .html or .csv",
        )
    every_run = _results_of(runs)
    trained: dict[str, TrainingRecord] = {}
    for results in every_run:
        # If several folders have a cell, the first folder counts, as in `pooled`.
        trained = results.trained | trained
    proofs = [
        prove(row, trained[row.cell_id], trust_plugin=trust_plugin) for row in pooled(every_run)
    ]
    board = Board.of(proofs)
    if out is not None:
        format_: Any = Path(out).suffix[1:]
        with replaced(Path(out)) as unfinished:
            unfinished.write_text(board.table.text(format_) + "\n", encoding="utf-8")
        print_line(plain_console(), f"board: {out}; {EXACT}")
    return board


def load(folder: Path | str, *, trust_plugin: bool = False) -> Run:
    """Return a run, or a released package.

    The run may be finished or still under way. A package has a generator, but no results.

    Args:
        folder: the folder of the run or package.
        trust_plugin: also run the code of an algorithm that is a file, or a module that is not
            installed.

    Raises:
        UserError: the folder is neither a run folder nor a package.
    """
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        RunFolder(path).check()
    return Run(path, trust_plugin)
