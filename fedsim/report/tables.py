"""Tables of results: one line per method, one column per epsilon, in five formats.

A :class:`Table` holds texts and the numbers behind them. It is printed to a terminal or written as
Markdown, LaTeX, HTML or CSV. The functions of this file build the tables of a report from
:class:`fedsim.results.stats.SeedGroups`:

- :func:`results_table`: the means of one measure, with references such as the ceiling;
- :func:`difference_table`: paired differences between methods;
- :func:`tuned_table`: the parameters that a search chose;
- :func:`site_table`: balanced accuracy by site.

All texts in a table are plain. They are escaped when the table is written in a format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
from rich.console import Console, Group
from rich.text import Text

from fedsim.errors import UserError, check_choice, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.evaluation.subset import MOST_TRAIN_ROWS
from fedsim.grid.models import Evaluation
from fedsim.privacy.plan import THEOREMS
from fedsim.report.terminal import fitting_columns, frame_table
from fedsim.results.columns import UNDRAWN, UNVERIFIED
from fedsim.results.stats import (
    FEWEST_SEEDS,
    PLACE,
    Compared,
    SeedGroups,
    Spread,
    paired_differences,
    price_of_privacy,
    same_budget,
    weakest,
    with_ends,
)
from fedsim.words import Printed, counted, number, print_line, setting, spelled

TableFormat = Literal["md", "latex", "html", "csv"]
"""The formats of :meth:`Table.text`."""
Order = Literal["given", "best", "name"]
"""The orders of methods in a table: as in the grid, by their mean, or by their label."""
_CLAIM_NOTES = {
    "stated": "the author states the theorem; the column check of the rows says whether a fedsim "
    "check refutes it",
    "heuristic": "the number is not a theorem for that method, or a check found a fault",
    UNVERIFIED: "of external samples, whose privacy fedsim neither counts nor checks",
    "refuted": "an audit refutes what is claimed at one budget or more",
}
"""The note below a table that explains each claim which is not proved."""
PUBLIC_MARK = " †"
"""The mark that follows the label of a method which used public data."""
MOST_SITES = 24
"""The largest number of sites in a table by site. With more sites there is no such table."""
MOST_LINES = 50
"""The number of terminal lines that the tables at the end of a bench may take together."""
_REFERENCE = 2
"""The ``kind`` of a reference's line, sorted after generators (0) and classifiers (1)."""
_CSV_NAMES = {"half": "ci95", "n": "seeds"}
"""The names in CSV of columns that are called otherwise in :meth:`SeedGroups.means`."""
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "_&%#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
        "·": r"$\cdot$",
        "∞": r"$\infty$",
        "×": r"$\times$",
        "†": r"$\dagger$",
        "⊙": r"$\odot$",
        "[": "{[}",
        "*": "{*}",
        "ε": r"$\varepsilon$",
        "α": r"$\alpha$",
        "δ": r"$\delta$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
    }
)
"""LaTeX for every character that has a meaning in LaTeX or is not in its default fonts."""


@dataclass(frozen=True, repr=False)
class Table(Printed):
    """A table of texts, with one block per place and one line per method.

    Attributes:
        name: A short name without blanks, used in LaTeX labels.
        title: The title. After the measure's name it says what is the same in the whole table.
        texts: The texts. The index has two levels, place and method; the columns are the heads.
        notes: The sentences that are shown below the table.
        numbers: The same results as numbers, one line per value, for CSV.
        best: Which texts are the best of their column and kind, in the shape of ``texts``. None if
            the measure has no best value.
    """

    fits_width: ClassVar[bool] = True
    name: str
    title: str
    texts: pd.DataFrame
    notes: tuple[str, ...]
    numbers: pd.DataFrame
    best: pd.DataFrame | None = None

    @property
    def chosen_by(self) -> str:
        """The option of ``fedsim report`` that prints this table; empty if there is none."""
        if self.name in MEASURES:
            return f"--measure {self.name}"
        if self.name == "sites":
            return "--table sites"
        return ""

    def text(self, as_: TableFormat) -> str:
        """Return the table as text in a format, with everything that users wrote escaped.

        Args:
            as_: ``md`` (Markdown), ``latex``, ``html``, or ``csv`` (numbers instead of texts).

        Raises:
            UserError: There is no such format.
        """
        check_choice("format", as_, get_args(TableFormat))
        if as_ == "md":
            return self._markdown()
        if as_ == "latex":
            return self._latex()
        if as_ == "html":
            return self.html()
        return inert(self.numbers).to_csv(index=False).rstrip("\n")

    def html(self) -> str:
        """Return the table as a part of an HTML page: a heading, one table per place, the notes."""
        parts = [f"<h3>{escape(self.title)}</h3>"]
        for place, texts in _blocks(self._marked(escape, "<b>{}</b>")):
            if place:
                parts.append(f"<h4>{place}</h4>")
            table = texts.to_html(escape=False, border=0, classes="results")
            parts.append(f'<div class="scroll">{table}</div>')
        parts += [f'<p class="notes">{escape(note)}</p>' for note in self.notes]
        return "\n".join(parts)

    def _markdown(self) -> str:
        """Return the table as GitHub's Markdown: a heading, one table per place, the notes."""
        parts = [f"### {markdown_text(self.title)}"]
        for place, texts in _blocks(self._marked(markdown_text, "**{}**")):
            if place:
                parts.append(f"**{place}**")
            parts.append(_markdown_table(texts))
        notes = [f"- {markdown_text(note)}" for note in self.notes]
        return "\n\n".join([*parts, "\n".join(notes)])

    def _latex(self) -> str:
        """Return the table as a LaTeX ``table`` that needs the package booktabs.

        A table with a single place has no column for the place.
        """
        texts = self._marked(latex_text, r"\textbf{{{}}}")
        if texts.index.get_level_values(0).nunique() < 2:
            texts = texts.droplevel(0)
        table: str = texts.style.to_latex(
            hrules=True,
            position_float="centering",
            multirow_align="naive",
            column_format="l" * texts.index.nlevels + "r" * texts.shape[1],
            label=f"tab:{self.name.replace('_', '-')}",
            caption=latex_text(self.title),
        )
        notes = rf"\par\smallskip\raggedright\footnotesize {latex_text('; '.join(self.notes))}."
        table = table.replace(r"\end{table}", f"{notes}\n\\end{{table}}").rstrip("\n")
        return f"% \\usepackage{{booktabs}}\n{table}"

    def _repr_html_(self) -> str:
        """Return the HTML by which a notebook shows the table."""
        return notebook_html(self.html())

    def show(self, console: Console) -> None:
        """Print the title, one table per place, and the notes."""
        for part in self._parts(console):
            console.print(part)

    def show_beginning(self, console: Console, most_lines: int) -> str:
        """Print as many places as fit into a number of lines, and at least the first one.

        Args:
            console: Where the table is printed.
            most_lines: How many lines title, places and notes may take together.

        Returns:
            How many places are left out, in words; empty if all are shown.
        """
        title, *blocks, notes = self._parts(console)
        room = most_lines - _lines_of(console, title, notes)
        shown: list[Group] = []
        for block in blocks:
            room -= _lines_of(console, block)
            if shown and room < 0:
                break
            shown.append(block)
        for part in (title, *shown, notes):
            console.print(part)
        left_out = len(blocks) - len(shown)
        if left_out:
            return f"{left_out} of {len(blocks)} parts of this table"
        return ""

    def lines(self, console: Console) -> int:
        """Return the number of lines that :meth:`show` prints."""
        return _lines_of(console, *self._parts(console))

    def _parts(self, console: Console) -> list[Any]:
        """Return what :meth:`show` prints: the title, one block per place, and the notes.

        Columns that do not fit the console's width are left out, and a note counts them.
        """
        blocks: list[Any] = []
        most_left_out = 0
        for place, texts in _blocks(self.texts):
            whole = texts.reset_index()
            fitting = fitting_columns(whole, console.width)
            filled_columns = int(whole.astype(bool).any().sum())
            most_left_out = max(most_left_out, filled_columns - fitting.shape[1])
            heading = ""
            if place:
                heading = f"\n{place}"
            block = frame_table("", fitting, console.width)
            blocks.append(Group(Text(heading, style="bold cyan"), block))
        notes = ["", *self.notes]
        if most_left_out:
            notes.append(
                f"{counted(most_left_out, 'column')} left out, because the terminal is too narrow; "
                "the table as csv has all columns"
            )
        title = Text(self.title, style="bold")
        return [title, *blocks, Text("\n".join([*notes, ""]), style="dim")]

    def _marked(self, escaped: Callable[[str], str], strong: str) -> pd.DataFrame:
        """Return the texts with their heads, escaped, and the best of them marked.

        Args:
            escaped: Escapes one text for the format.
            strong: A format string such as ``<b>{}</b>``, applied to the best texts.
        """
        marked = self.texts.map(escaped)
        if self.best is not None:
            marked = marked.where(~self.best, marked.map(strong.format))
        levels = [marked.index.get_level_values(level).map(escaped) for level in (0, 1)]
        marked.index = pd.MultiIndex.from_arrays(levels, names=[None, None])
        return marked.set_axis([escaped(str(name)) for name in marked.columns], axis=1)


def show_briefly(tables: Sequence[Table], folder: Path, console: Console) -> None:
    """Print the first table and those others that fit, and say where the rest is.

    Args:
        tables: The tables, the main one first. They share :data:`MOST_LINES` lines.
        folder: The run folder, for the command that prints a table which is left out.
        console: Where the tables are printed.
    """
    main, *others = tables
    left_out = [(main, main.show_beginning(console, MOST_LINES))]
    room = MOST_LINES - main.lines(console)
    for table in others:
        lines = table.lines(console)
        if lines > room:
            left_out.append((table, table.title.split(" · ")[0]))
            continue
        table.show(console)
        room -= lines
    for table, words in left_out:
        if not words:
            continue
        sentence = f"{words}: in the report page"
        if table.chosen_by:
            sentence += ", and printed by:"
        console.print(sentence, highlight=False, markup=False)
        if table.chosen_by:
            print_line(console, f"  fedsim report {folder} {table.chosen_by}")


def _lines_of(console: Console, *parts: Any) -> int:
    """Return the number of lines that some parts take on a console."""
    return sum(len(console.render_lines(part, pad=False)) for part in parts)


def notebook_html(body: str) -> str:
    """Return the HTML of a notebook's cell: a body with fedsim's style sheet.

    The style uses the colours of the notebook, whether they are light or dark.

    Args:
        body: HTML in which everything that users wrote is escaped.
    """
    style = files(__package__).joinpath("notebook.css").read_text(encoding="utf-8")
    return f'<div class="fedsim"><style>\n{style}</style>\n{body}\n</div>'


def _blocks(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every place with its part of a frame of texts, in their order."""
    for place, texts in frame.groupby(level=0, sort=False):
        yield str(place), texts.droplevel(0)


def _markdown_table(texts: pd.DataFrame) -> str:
    """Return a frame as a Markdown table, without pandas' ``to_markdown``, which needs tabulate."""
    lines = [["method", *texts.columns], ["---", *["---:"] * texts.shape[1]]]
    lines += [list(line) for line in texts.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return a text on one line, escaped for GitHub's Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Return a text on one line, escaped for LaTeX."""
    return " ".join(text.split()).translate(_LATEX)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose texts a spreadsheet does not run as formulas.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, and carriage
    returns become blanks, so that no text ends a line.
    """

    def inert_value(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.replace("\r", " ")
        if value.startswith(("=", "+", "-", "@", "\t", "\r")):
            return f"'{text}"
        return text

    return frame.map(inert_value)


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals, or from a million on with four digits.

    Args:
        value: The number.
        digits: The number of decimals. A number of a million or more would be too wide for a
            column, so it is written as 1.235e+06.
    """
    if abs(value) >= 1e6:
        return number(value, 4)
    return f"{value:.{digits}f}"


def mean_text(line: Mapping[Any, Any], digits: int = 3, sign: str = "") -> str:
    """Return a mean as text, followed by ± and half the distance between its ends.

    Args:
        line: Holds ``mean``, ``low`` and ``high``. Where ``low`` is NaN there is no ±.
        digits: The number of decimals.
        sign: ``+`` writes the sign of positive means, too.
    """
    text = decimal(line["mean"], digits)
    if sign:
        text = f"{line['mean']:{sign}.{digits}f}"
    if math.isnan(line["low"]):
        return text
    return f"{text}±{decimal((line['high'] - line['low']) / 2, digits)}"


def claim(facts: pd.DataFrame) -> str:
    """Return what the epsilons of one method rest on.

    Args:
        facts: The lines of :attr:`SeedGroups.facts` that have the method's label.

    Returns:
        The weakest claim of the method's finite epsilons; ``refuted`` if an audit refuted one of
        them; ``not private`` if the method has no epsilon.
    """
    if facts["epsilon_target"].isna().all():
        return "not private"
    if facts["refuted"].any():
        return "refuted"
    # Without noise (ε = ∞) nothing is claimed, so only finite budgets count where there are any.
    private = facts[facts["epsilon_target"] < math.inf]
    if private.empty:
        private = facts
    return weakest(list(private["claim"])) or ""


def claim_words(word: str) -> str:
    """Return the words beside a method's label for a claim other than "proved"."""
    words = {
        "none": "no claim on ε",
        "not private": "not private",
        UNVERIFIED: "ε as stated by the author, not verified",
    }
    return words.get(word, f"{word} ε")


def named(facts: pd.DataFrame) -> dict[str, str]:
    """Return the name of each method in tables and legends, by its label.

    The name is the label, the mark of public data, and in brackets whether the method yields a
    classifier and what its epsilon rests on if that is not a proof.

    Args:
        facts: :attr:`SeedGroups.facts`, one line per setting.
    """
    names = {}
    for label, method in facts.groupby("label", sort=False):
        name = str(label)
        if method["public"].notna().any():
            name += PUBLIC_MARK
        remarks = []
        if method["yields"].iloc[0] == "classifier":
            remarks.append("classifier")
        method_claim = claim(method)
        if method_claim not in ("", "proved"):
            remarks.append(claim_words(method_claim))
        if remarks:
            name += f" ({', '.join(remarks)})"
        names[str(label)] = name
    return names


def reference_name(name: str, labels: Collection[str]) -> str:
    """Return the name of a reference in tables and curves, marked if a method has the same label.

    Methods and references are told apart by their names alone, and ``local-only`` is both.
    """
    while name in labels:
        name += " (reference)"
    return name


def placed(facts: pd.DataFrame, more: Sequence[str] = ()) -> tuple[list[str], pd.Series[str]]:
    """Return the words of what all lines have in common, and of what differs between them.

    Args:
        facts: One line per setting, with the columns :data:`PLACE`.
        more: Further columns, such as ``epsilon_target``, that belong to the place.

    Returns:
        The common words for a title (a list of at most one text), and for every line the words of
        the columns that are not the same everywhere.
    """
    columns = [*PLACE, *more]
    varied = [name for name in columns if facts[name].nunique(dropna=False) > 1]
    same = [name for name in columns if name not in varied]
    common = [setting_words(line, same) for line in facts.head(1).to_dict("records")]
    places = facts.apply(lambda line: setting_words(line, varied), axis=1).astype(str)
    return [words for words in common if words], places


def setting_words(line: Any, columns: Sequence[str]) -> str:
    """Return some columns of a setting in words, such as ``digits · α = 0.3 · 10 clients``.

    Args:
        line: A line of :attr:`SeedGroups.facts`, as a series or a dictionary.
        columns: Which of ``label``, :data:`PLACE` and ``epsilon_target`` to name.
    """
    known = {name: line[name] for name in columns if not pd.isna(line[name])}
    return setting(
        known.get("label"),
        known.get("dataset"),
        known.get("scheme"),
        alpha=known.get("alpha"),
        clients=known.get("clients"),
        epsilon=known.get("epsilon_target"),
    )


def epsilon_head(epsilon: float) -> str:
    """Return the head of an epsilon's column; NaN stands for methods without an epsilon."""
    if math.isnan(epsilon):
        return "no ε"
    return f"ε = {number(epsilon)}"


def known_measure(measure: str) -> str:
    """Return the name of a measure as it is given.

    Raises:
        UserError: There is no such measure; the message suggests the nearest name.
    """
    if measure not in MEASURES:
        raise UserError("measure", f"there is no measure '{measure}'", nearest(measure, MEASURES))
    return measure


def _distance(means: pd.Series[float], best: float) -> pd.Series[float]:
    """Return how far means are from the best value: the smaller, the better."""
    if best == math.inf:
        return -means
    return (means - best).abs()


def ordered(settings: SeedGroups, measure: str, order: Order) -> list[str]:
    """Return the labels of the methods in the order of a table's lines.

    Args:
        settings: The results.
        measure: The measure by whose mean over all settings ``best`` orders.
        order: ``given`` is the order of the grid, also used where a measure has no best value;
            ``best`` puts the best mean first; ``name`` is alphabetical.
    """
    labels = list(dict.fromkeys(settings.facts["label"]))
    if order == "name":
        return sorted(labels)
    best = MEASURES[measure].best
    if order == "given" or best is None:
        return labels
    means = settings.facts.join(settings.mean(measure)).groupby("label")[measure].mean()
    distance = _distance(means, best).fillna(math.inf)
    return sorted(labels, key=distance.__getitem__)


def results_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    order: Order = "given",
    digits: int = 3,
) -> Table:
    """Return the table of a measure: means with their spread over seeds, and references.

    Args:
        settings: The results.
        measure: The name of the measure, a key of :data:`MEASURES`.
        order: The order of the methods, see :func:`ordered`.
        digits: The number of decimals.

    Raises:
        UserError: There is no such measure, or no result has it. A table of balanced accuracy may
            be empty.
    """
    means = settings.means([known_measure(measure)]).set_index("setting")
    if means.empty and measure != "balanced_accuracy":
        raise UserError(
            "measure",
            f"no row that is ok has a {measure}",
            "look at status and scores in results.jsonl",
        )
    common, places = placed(settings.facts)
    ranks = settings.facts["label"].map(ordered(settings, measure, order).index)
    methods = _method_lines(settings.facts, means, digits).assign(where=places, rank=ranks)
    lines = pd.concat([methods, *_reference_lines(settings, methods, measure, digits)])
    positions = {place: position for position, place in enumerate(dict.fromkeys(places))}
    lines["place"] = lines["where"].map(positions)
    lines = lines.sort_values(["place", "kind", "rank"], kind="stable")
    best = MEASURES[measure].best
    if best is not None:
        lines["best"] = _best(lines, best, digits)
    columns = ["label", "claim", "epsilon_target", "delta", "unit", "trust", "mean", "half", "n"]
    numbers = means[[*PLACE, *columns]].assign(measure=measure)
    title = (MEASURES[measure].title, *common)
    return _built(measure, title, lines, list(_notes(settings, means, measure)), numbers)


def _method_lines(facts: pd.DataFrame, means: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return the lines of the methods in a table of results.

    Args:
        facts: :attr:`SeedGroups.facts`.
        means: The means of the measure by setting; settings without the measure are missing.
        digits: The number of decimals.

    Returns:
        ``facts`` with ``method`` (its name), ``kind`` (0 for generators, 1 for classifiers),
        ``text``, ``mean``, and ``holds`` (whether the method may be marked as best).
    """
    holds = {
        label: claim(method) in (*THEOREMS, "not private")
        for label, method in facts.groupby("label")
    }
    most = most_seeds(facts)
    results = facts.join(means[["mean", "low", "high", "n"]]).to_dict("records")
    return facts.assign(
        method=facts["label"].map(named(facts)),
        kind=(facts["yields"] == "classifier").astype(int),
        text=[_value(line, most, digits) for line in results],
        mean=means["mean"].astype("float64"),
        holds=facts["label"].map(holds),
    )


def _reference_lines(
    settings: SeedGroups, methods: pd.DataFrame, measure: str, digits: int
) -> Iterator[pd.DataFrame]:
    """Yield the lines of each reference of a measure: one line per place that has the reference.

    Args:
        settings: The results.
        methods: The lines of the methods, from which places get their words.
        measure: The name of the measure.
        digits: The number of decimals.
    """
    places = methods.drop_duplicates("where")[[*PLACE, "where"]]
    labels = set(methods["label"])
    for rank, (name, column) in enumerate(MEASURES[measure].references):
        texts = settings.reference(column).map(lambda level: decimal(level, digits))
        yield (
            texts.rename("text")
            .reset_index()
            .merge(places, on=PLACE)
            .assign(
                method=reference_name(name, labels),
                kind=_REFERENCE,
                rank=rank,
                epsilon_target=math.nan,
            )
        )


def _built(
    name: str,
    title: Sequence[str],
    lines: pd.DataFrame,
    notes: Sequence[str],
    numbers: pd.DataFrame,
) -> Table:
    """Return a table made of one line per value.

    Args:
        name: The table's name.
        title: The parts of its title.
        lines: The values, in the order of the table: ``where`` (place), ``method``, ``text``, and
            either ``head`` (the head of its column) or ``epsilon_target``; ``best`` is optional.
        notes: The notes below the table.
        numbers: The numbers for CSV.
    """
    if "head" in lines:
        heads = list(lines["head"].unique())
    else:
        epsilons = lines["epsilon_target"].astype("float64")
        heads = list(epsilons.drop_duplicates().sort_values().map(epsilon_head))
        lines = lines.assign(head=epsilons.map(epsilon_head))
    lines = lines.drop_duplicates(["where", "method", "head"], keep="last")
    index = pd.MultiIndex.from_frame(lines[["where", "method"]].drop_duplicates())

    def wide(values: str) -> pd.DataFrame:
        frame = lines.pivot(index=["where", "method"], columns="head", values=values)
        return frame.reindex(index=index)[heads].rename_axis(columns=None)

    best = None
    if "best" in lines:
        best = wide("best").fillna(False).astype(bool)
    texts = wide("text").fillna("")
    numbers = numbers.rename(columns=_CSV_NAMES)
    return Table(name, " · ".join(title), texts, tuple(notes), numbers, best)


def most_seeds(facts: pd.DataFrame) -> int:
    """Return the largest number of seeds that any mean is of."""
    if facts.empty:
        return 0
    return int(facts["seeds"].max())


def _value(line: Mapping[Any, Any], most: int, digits: int) -> str:
    """Return the text of one setting: its mean, or why it has none.

    Args:
        line: A line of :attr:`SeedGroups.facts` with ``mean``, ``low``, ``high`` and ``n``.
        most: The largest number of seeds in the table.
        digits: The number of decimals.
    """
    if not math.isnan(line["mean"]):
        return _with_count(mean_text(line, digits), line, most)
    if line["seeds"]:
        return ""
    return next((status for status in reversed(UNDRAWN) if line[status]), "")


def _with_count(text: str, line: Mapping[Any, Any], most: int) -> str:
    """Return a text, followed by its number of seeds if others in the table have more."""
    if line["n"] < most:
        return f"{text} (n={line['n']:.0f})"
    return text


def _best(lines: pd.DataFrame, best: float, digits: int) -> pd.Series[bool]:
    """Return which lines have the best mean of their place, kind and epsilon.

    Means count as they are shown, rounded. Only methods whose claim ``holds`` can be best, and
    only where another method is worse.
    """
    means = lines["mean"].round(digits).where(lines["holds"].eq(True))
    distance = _distance(means, best).round(digits)
    keys = [lines["where"], lines["kind"], lines["epsilon_target"]]
    groups = distance.groupby(keys, dropna=False)
    least = groups.transform("min")
    return (distance == least) & (least < groups.transform("max"))


def spread_words(spread: Spread, seeds: int) -> str:
    """Return the note that explains what is shown beside a mean over some seeds."""
    if seeds < 2:
        return "one seed, so no interval"
    if spread == "ci95" and seeds < FEWEST_SEEDS:
        return (
            "mean over 2 seeds, without an interval (which needs at least 3 seeds): run more, or "
            "give `spread` range"
        )
    beside = {
        "ci95": "half-width of the Student-t 95 % confidence interval",
        "sd": "standard deviation",
        "range": "half the range",
    }
    return f"mean ± {beside[spread]} over {seeds} seeds"


def _notes(settings: SeedGroups, means: pd.DataFrame, measure: str) -> Iterator[str]:
    """Yield the notes below a table of results.

    Args:
        settings: The results.
        means: The means of the measure, one line per setting.
        measure: The name of the measure.
    """
    facts = settings.facts
    if len(means):
        yield spread_words(settings.spread, most_seeds(facts))
    fewest_seeds = 2
    if settings.spread == "ci95":
        fewest_seeds = FEWEST_SEEDS
    if ((means["n"] >= fewest_seeds) & means["half"].isna()).any():
        yield "no ±: each seed gave the same"
    left_out = {status: int(facts[status].sum()) for status in UNDRAWN}
    counts = [f"{count} {status}" for status, count in left_out.items() if count]
    if counts:
        yield f"in no mean: {' and '.join(counts)} (the report says why)"
    code_states = settings.averaged["evaluation_source"].nunique()
    if code_states > 1:
        yield (
            f"scores are from {code_states} revisions of the evaluation code: run the same bench "
            "again to evaluate saved generators anew"
        )
    is_reduced = settings.averaged["reference_rows"] < settings.averaged["train_rows"]
    if "local-only" in dict(MEASURES[measure].references) and is_reduced.any():
        yield (
            f"ceiling and local-only are computed on a fixed choice of about {MOST_TRAIN_ROWS:,} "
            "training rows, with classes as equally frequent as possible"
        )
    if MEASURES[measure].best is not None:
        yield (
            "bold: the best of a column among generators, and among classifiers, whose claim holds"
        )
    yield from _method_notes(facts)


def _method_notes(facts: pd.DataFrame) -> Iterator[str]:
    """Yield the notes that explain the remarks beside methods: claims and public data."""
    claims = {claim(method) for _, method in facts.groupby("label")}
    for word, text in _CLAIM_NOTES.items():
        if word in claims:
            yield f"{claim_words(word)}: {text}"
    public_names = facts["public"].dropna().unique()
    if len(public_names):
        yield f"†: uses public data: {', '.join(map(str, public_names))}"


def difference_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    digits: int = 3,
    compared: Compared = same_budget,
) -> Table | None:
    """Return the table of paired differences between methods, Holm-corrected over every place.

    Args:
        settings: The results.
        measure: The name of the measure.
        digits: The number of decimals.
        compared: Says which pairs of settings are compared; default: those with equal budgets.

    Returns:
        The table, or None if no two methods share two seeds.
    """
    differences = paired_differences(settings, known_measure(measure), compared)
    if differences.empty:
        return None
    first = settings.facts.loc[differences["first"]].reset_index()
    second = settings.facts.loc[differences["second"]].reset_index()
    # A method that is compared with itself without noise needs the budget in its name.
    is_itself = (first["label"] == second["label"]) & (second["epsilon_target"] == math.inf)
    other = second["label"].where(~is_itself, second["label"] + " at ε = ∞")
    seeds = int(differences["n"].max())
    common, places = placed(first)
    lines = first[["epsilon_target"]].assign(
        where=places,
        method=first["label"] + " − " + other,
        text=[_difference(line, seeds, digits) for line in differences.to_dict("records")],
    )
    notes = (
        "first method minus second, over the seeds that both have; "
        f"{spread_words(settings.spread, seeds)}, not corrected",
        "p: two-sided paired t-test, Holm-corrected for all differences of one place; none "
        "where the differences do not vary",
    )
    numbers = first[PLACE].assign(
        first=first["label"], second=other, epsilon_target=first["epsilon_target"], measure=measure
    )
    numbers = numbers.join(differences[["mean", "half", "n", "p", "p_holm"]])
    title = (f"{MEASURES[measure].title}, paired differences", *common)
    return _built(f"{measure}-differences", title, lines, notes, numbers)


def chosen_pair(first: str, second: str) -> Compared:
    """Return the ``compared`` of :func:`difference_table` for two methods, given by label.

    Settings of one budget are compared, and private settings of the first method with settings
    of the second one without noise.
    """

    def is_chosen(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        if (one["label"], other["label"]) != (first, second):
            return False
        return same_budget(one, other) or price_of_privacy(one, other)

    return is_chosen


def _difference(line: Mapping[Any, Any], most: int, digits: int) -> str:
    """Return the text of one paired difference, with its corrected p-value if it has one."""
    text = mean_text(line, digits, "+")
    p = line["p_holm"]
    if p < 0.001:
        text += " p<0.001"
    elif not math.isnan(p):
        text += f" p={p:.3f}"
    return _with_count(text, line, most)


def parameter_words(parameters: Mapping[str, Any]) -> str:
    """Return parameters in words, such as ``clip 1, rounds 40``."""
    return ", ".join(f"{name} {spelled(value)}" for name, value in parameters.items())


def tuned_table(settings: SeedGroups) -> Table | None:
    """Return the table of what tuned cells chose, and after how many trainings.

    Returns:
        The table, with one text per method and budget that joins the choices of all seeds; None
        if nothing was tuned.
    """
    cells = settings.averaged.dropna(subset="tuning")
    if cells.empty:
        return None
    choices = cells["tuning"].map(
        lambda tuning: f"{parameter_words(tuning['chosen'])}: {tuning['trained']}"
    )
    facts = settings.facts.loc[cells["setting"].unique()]
    common, places = placed(facts)
    texts = choices.groupby(cells["setting"]).agg("; ".join)
    lines = facts.assign(where=places, method=facts["label"], text=texts)
    note = (
        "the number of trainings is not private, and no part of what may be released; an ε "
        "that is paid for is of all of them together"
    )
    title = ("Chosen parameters, and how many trainings there were", *common)
    numbers = lines[["where", "method", "epsilon_target", "text"]]
    return _built("chosen", title, lines, (note,), numbers)


def site_table(settings: SeedGroups, clients: pd.DataFrame, digits: int = 3) -> Table | None:
    """Return the table of balanced accuracy by site.

    A site is a client that was evaluated on its own test examples, or a site that was left out of
    the training and on whose test examples everything was evaluated.

    Args:
        settings: The results.
        clients: The evaluations of single clients of the run, by ``cell_id``; may be empty.
        digits: The number of decimals.

    Returns:
        The table, with a last column for the mean over the sites; None if there are no sites, or
        more than :data:`MOST_SITES`.
    """
    title, scores = _site_scores(settings, clients)
    if scores.empty or scores["name"].nunique() > MOST_SITES:
        return None
    facts = settings.facts
    # The name of a data set says which site was left out of it; here every site has a column.
    whole_names = facts["dataset"].str.replace(r" \(.* unseen\)$", "", regex=True)
    facts = facts.assign(dataset=whole_names, method=facts["label"].map(named(facts)))
    scores = scores.merge(facts, left_on="setting", right_index=True)
    alone = scores.dropna(subset=["alone"]).drop_duplicates([*PLACE, "seed", "name"])
    alone = alone.assign(
        score=alone["alone"], method="the site's own real rows", epsilon_target=math.nan
    )
    scores = pd.concat([scores, alone]).reset_index(drop=True)
    common, scores["where"] = placed(scores, ["epsilon_target"])
    by_seed = scores.groupby(["where", "method", "seed"], sort=False)["score"]
    over_sites = by_seed.mean().reset_index().assign(name="mean")
    by_site = pd.concat([scores, over_sites]).groupby(["where", "method", "name"], sort=False)
    stats = by_site["score"].agg(["mean", "std", "min", "max", "count"])
    stats = stats.rename(columns={"count": "n"}).reset_index()
    numbers = with_ends(stats, settings.spread)
    texts = [mean_text(line, digits) for line in numbers.to_dict("records")]
    lines = numbers.assign(head=numbers["name"], text=texts)
    notes = (
        spread_words(settings.spread, most_seeds(facts)),
        "last column: the mean over the sites, of every seed",
    )
    numbers = numbers.rename(columns={"name": "site"}).drop(columns=["low", "high"])
    return _built("sites", ("Balanced accuracy by site", title, *common), lines, notes, numbers)


def _site_scores(settings: SeedGroups, clients: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the scores of single sites, and on which examples they are.

    Returns:
        Words for the title, and one line per result and site: ``setting``, ``seed``, ``name`` (of
        the site), ``score``, and ``alone`` (the score of the site's own real examples, or NaN).
    """
    results = settings.averaged[["setting", "seed", "cell_id", "unseen", "balanced_accuracy"]]
    if len(clients) and clients["cell_id"].isin(results["cell_id"]).any():
        title = "on the site's own test rows"
        columns = {"own_balanced_accuracy": "score", "local_only_balanced_accuracy": "alone"}
        by_client = clients[["cell_id", "name", *columns]].rename(columns=columns)
        scores = results.merge(by_client, on="cell_id")
    else:
        title = "on a site that took no part"
        columns = {"unseen": "name", "balanced_accuracy": "score"}
        scores = results.rename(columns=columns).assign(alone=math.nan)
    scores = scores.astype({"score": "float64", "alone": "float64"})
    return title, scores.dropna(subset=["name", "score"])


def measures_of(settings: SeedGroups, *, terminal: bool = False) -> list[str]:
    """Return the measures that get a table: balanced accuracy, then all others with values.

    Args:
        settings: The results.
        terminal: Only those for a terminal: the measures that are marked so, and the measures of
            evaluators that the grid asked for instead of the default ones.
    """
    default_evaluators = Evaluation().evaluators
    asked: set[str] = set()
    for evaluators in settings.rows.get("evaluation.evaluators", ()):
        if isinstance(evaluators, list | tuple) and tuple(evaluators) != default_evaluators:
            asked.update(evaluators)
    shown = ["balanced_accuracy"]
    for name, measure in MEASURES.items():
        evaluator = name.partition("_")[0]
        if measure.fidelity:
            evaluator = "fidelity"
        is_wanted = measure.terminal or evaluator in asked or not terminal
        if measure.table and is_wanted and settings.averaged[name].notna().any():
            shown.append(name)
    return list(dict.fromkeys(shown))
