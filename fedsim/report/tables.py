"""Tables of settings: a line a method, a column an epsilon; as text for a terminal, Markdown,
LaTeX, HTML and CSV.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from fedsim.grid.models import Evaluation
from fedsim.privacy.plan import THEOREMS
from fedsim.report.terminal import fitting_columns, frame_table
from fedsim.results.columns import UNDRAWN, UNVERIFIED
from fedsim.results.stats import (
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
Order = Literal["given", "best", "name"]
_CLAIM_NOTES = {
    "stated": "the author states the theorem; the column check of the rows says whether a fedsim "
    "check refutes it",
    "heuristic": "the number is not a theorem for that method, or a check found a fault",
    UNVERIFIED: "of external samples, whose privacy fedsim neither counts nor checks",
    "refuted": "an audit refutes what is claimed at one budget or more",
}
PUBLIC_MARK = " †"
"""Behind the label of a method that used public rows."""
MOST_SITES = 24
"""So many columns of sites a table has at most; of more clients there is none."""
MOST_LINES = 50
"""Lines of a terminal that the tables at the end of a bench take together."""
_REFERENCE = 2
"""The kind of a line behind those of generators, 0, and classifiers, 1."""
_OF_NUMBERS = {"half": "ci95", "n": "seeds"}
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


@dataclass(frozen=True, repr=False)
class Table(Printed):
    """A table of texts, by place, in words, and method.

    Attributes:
        name, title: a short one without blanks; and what is the same for all of it.
        notes: what belongs below.
        numbers: a line a number, for CSV.
        best: which texts are the best of their column and kind; None: none is.
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
        """The option of ``fedsim report`` that prints it; empty where none does."""
        if self.name in MEASURES:
            return f"--measure {self.name}"
        if self.name == "sites":
            return "--table sites"
        return ""

    def text(self, as_: TableFormat) -> str:
        """The table in a format; what users wrote is escaped."""
        check_choice("format", as_, get_args(TableFormat))
        if as_ == "csv":
            return inert(self.numbers).to_csv(index=False).rstrip("\n")
        if as_ == "md":
            blocks = _blocks(self._marked(markdown_text, "**{}**"))
            tables = [
                (f"**{place}**\n\n" if place else "") + _markdown(rows) for place, rows in blocks
            ]
            return "\n\n".join(
                [
                    f"### {markdown_text(self.title)}",
                    *tables,
                    "\n".join(f"- {markdown_text(note)}" for note in self.notes),
                ]
            )
        if as_ == "html":
            return self.html()
        shown = self._marked(latex_text, r"\textbf{{{}}}")
        if shown.index.get_level_values(0).nunique() < 2:
            shown = shown.droplevel(0)
        how: dict[str, Any] = {
            "hrules": True,
            "position_float": "centering",
            "multirow_align": "naive",
        }
        how |= {
            "column_format": "l" * shown.index.nlevels + "r" * shown.shape[1],
            "label": f"tab:{self.name.replace('_', '-')}",
        }
        table: str = shown.style.to_latex(caption=latex_text(self.title), **how)
        notes = rf"\par\smallskip\raggedright\footnotesize {latex_text('; '.join(self.notes))}."
        return "% \\usepackage{booktabs}\n" + table.replace(
            r"\end{table}", f"{notes}\n\\end{{table}}"
        ).rstrip("\n")

    def html(self) -> str:
        """A part of a page."""
        parts = [f"<h3>{escape(self.title)}</h3>"]
        for place, rows in _blocks(self._marked(escape, "<b>{}</b>")):
            table = rows.to_html(escape=False, border=0, classes="results")
            parts.append(
                f'<h4>{place}</h4>\n<div class="scroll">{table}</div>'
                if place
                else f'<div class="scroll">{table}</div>'
            )
        return "\n".join([*parts, *(f'<p class="notes">{escape(note)}</p>' for note in self.notes)])

    def _repr_html_(self) -> str:
        """The table as a notebook shows it."""
        return notebook_html(self.html())

    def show(self, console: Console) -> None:
        """Print the title, a table for every place, and the notes."""
        title, *blocks, notes = self._parts(console)
        for part in (title, *blocks, notes):
            console.print(part)

    def show_beginning(self, console: Console, most_lines: int) -> str:
        """Print as many places as fit into so many lines, one at least; return how many are left
        out, in words, or nothing.
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
        """The number of lines that :meth:`show` prints."""
        return _lines_of(console, *self._parts(console))

    def _parts(self, console: Console) -> list[Any]:
        """The title, a block for every place, and the notes, as wide as a console."""
        blocks: list[Any] = []
        notes = list(self.notes)
        most_left_out = 0
        for place, rows in _blocks(self.texts):
            whole = rows.reset_index()
            fitting = fitting_columns(whole, console.width)
            filled = sum(bool(whole[name].astype(bool).any()) for name in whole.columns)
            most_left_out = max(most_left_out, filled - fitting.shape[1])
            head = Text(f"\n{place}" if place else "", style="bold cyan")
            blocks.append(Group(head, frame_table("", fitting, console.width)))
        if most_left_out:
            notes.append(
                f"{counted(most_left_out, 'column')} left out, for want of width: a wider terminal "
                "shows all, and the table as csv has all"
            )
        title = Text(self.title, style="bold")
        return [title, *blocks, Text("\n".join(("", *notes, "")), style="dim")]

    def _marked(self, escaped: Callable[[str], str], strong: str) -> pd.DataFrame:
        """The texts with heads, escaped, the best of them strong."""
        marked = self.texts.map(escaped)
        if self.best is not None:
            marked = marked.where(~self.best, marked.map(strong.format))
        levels = [marked.index.get_level_values(level).map(escaped) for level in (0, 1)]
        marked.index = pd.MultiIndex.from_arrays(levels, names=[None, None])
        return marked.set_axis([escaped(str(name)) for name in marked.columns], axis=1)


def show_briefly(tables: Sequence[Table], folder: Path, console: Console) -> None:
    """Print the first table, further ones as far as all have :data:`MOST_LINES`, and where the
    others of a run folder are.
    """
    main, *others = tables
    left_out = [(main, main.show_beginning(console, MOST_LINES))]
    room = MOST_LINES - main.lines(console)
    for table in others:
        lines = table.lines(console)
        if lines <= room:
            table.show(console)
            room -= lines
        else:
            left_out.append((table, table.title.split(" · ")[0]))
    for table, words in left_out:
        if not words:
            continue
        if table.chosen_by:
            ending = ", and printed by:"
        else:
            ending = ""
        console.print(f"{words}: in the report page{ending}", highlight=False, markup=False)
        if table.chosen_by:
            print_line(console, f"  fedsim report {folder} {table.chosen_by}")


def _lines_of(console: Console, *parts: Any) -> int:
    """The number of lines that some parts take on a console."""
    return sum(len(console.render_lines(part, pad=False)) for part in parts)


def notebook_html(body: str) -> str:
    """Escaped HTML as the value of a notebook's cell: with a style of its own, in the colours of
    the notebook, whether they are light or dark.
    """
    style = files(__package__).joinpath("notebook.css").read_text(encoding="utf-8")
    return f'<div class="fedsim"><style>\n{style}</style>\n{body}\n</div>'


def _blocks(frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for place, rows in frame.groupby(level=0, sort=False):
        yield str(place), rows.droplevel(0)


def _markdown(rows: pd.DataFrame) -> str:
    """Labels and texts with a head; ``to_markdown`` would need another package."""
    lines = [
        ["method", *rows.columns],
        ["---", *["---:"] * rows.shape[1]],
        *([label, *texts] for label, *texts in rows.itertuples()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """A text as it is in GitHub's Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """A text as it is in LaTeX, on one line."""
    return " ".join(text.split()).translate(_LATEX)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts as a spreadsheet shows them: what it would take for a formula begins with an
    apostrophe, and no text ends a line.
    """

    def shown(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return ("'" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + value.replace(
            "\r", " "
        )

    return frame.map(shown)


def decimal(value: float, digits: int = 3) -> str:
    """To so many decimals; a large one, that no column holds, to four digits."""
    if abs(value) >= 1e6:
        return number(value, 4)
    return f"{value:.{digits}f}"


def mean_text(line: Mapping[Any, Any], digits: int = 3, sign: str = "") -> str:
    """A mean with half of what lies between its ends."""
    if math.isnan(line["low"]):
        beside = ""
    else:
        beside = f"±{decimal((line['high'] - line['low']) / 2, digits)}"
    return (f"{line['mean']:{sign}.{digits}f}" if sign else decimal(line["mean"], digits)) + beside


def claim(facts: pd.DataFrame) -> str:
    """The claim of a method's finite epsilons, or "refuted" if one of them was; "not private" for a
    method without epsilon.
    """
    if facts["epsilon_target"].isna().all():
        return "not private"
    if facts["refuted"].any():
        return "refuted"
    # at epsilon = ∞ there is no noise, so nothing to claim: the finite budgets speak
    finite = facts[facts["epsilon_target"] < math.inf]
    return weakest([*(finite if len(finite) else facts)["claim"]]) or ""


def claim_words(word: str) -> str:
    """How a claim other than "proved" is worded beside a label."""
    words = {
        "none": "no claim on ε",
        "not private": "not private",
        UNVERIFIED: "ε as stated by the author, not verified",
    }
    return words.get(word, f"{word} ε")


def named(facts: pd.DataFrame) -> dict[str, str]:
    """What a table calls each method, by label: with a mark of public data, its kind, and a claim
    that is not "proved".
    """
    names = {}
    for label, own in facts.groupby("label", sort=False):
        if own["yields"].iloc[0] == "classifier":
            remarks = ["classifier"]
        else:
            remarks = []
        if (word := claim(own)) not in ("", "proved"):
            remarks += [claim_words(word)]
        if own["public"].notna().any():
            mark = PUBLIC_MARK
        else:
            mark = ""
        names[str(label)] = f"{label}{mark}" + (f" ({', '.join(remarks)})" if remarks else "")
    return names


def reference_name(name: str, labels: Collection[str]) -> str:
    """Returns what tables and curves call a reference: its name, marked if a method is labelled so.

    Methods and references are told apart by their names alone, and ``local-only`` is both.
    """
    while name in labels:
        name += " (reference)"
    return name


def placed(facts: pd.DataFrame, more: Sequence[str] = ()) -> tuple[list[str], pd.Series[str]]:
    """What is the same for all places, in words; and of each line what is not."""
    columns = [*PLACE, *more]
    varied = [name for name in columns if facts[name].nunique(dropna=False) > 1]
    if len(facts):
        common = [setting_words(facts.iloc[0], [name for name in columns if name not in varied])]
    else:
        common = []
    return [word for word in common if word], facts.apply(
        lambda line: setting_words(line, varied), axis=1
    ).astype(str)


def setting_words(line: Any, columns: Sequence[str]) -> str:
    """Some columns of a setting, in words."""
    label, dataset, scheme, alpha, clients, epsilon = (
        line[name] if name in columns and not pd.isna(line[name]) else None
        for name in ("label", *PLACE, "epsilon_target")
    )
    return setting(label, dataset, scheme, alpha=alpha, clients=clients, epsilon=epsilon)


def epsilon_head(epsilon: float) -> str:
    """The head of the column of an epsilon."""
    if math.isnan(epsilon):
        return "no ε"
    return f"ε = {number(epsilon)}"


def known_measure(measure: str) -> str:
    """A measure's name."""
    if measure not in MEASURES:
        raise UserError("measure", f"there is no measure '{measure}'", nearest(measure, MEASURES))
    return measure


def ordered(settings: SeedGroups, measure: str, order: Order) -> list[str]:
    """The labels of the methods: as in the grid, the best mean first, or by name."""
    labels = list(dict.fromkeys(settings.facts["label"]))
    if order == "name":
        return sorted(labels)
    best = MEASURES[measure].best
    if order == "best" and best is not None:
        means = settings.facts.join(settings.mean(measure)).groupby("label")[measure].mean()
        if best == math.inf:
            distance = -means
        else:
            distance = (means - best).abs()
        return sorted(
            labels, key=lambda label: math.inf if math.isnan(distance[label]) else distance[label]
        )
    return labels


def results_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    order: Order = "given",
    digits: int = 3,
) -> Table:
    """A measure by place, method and epsilon: means with their spread over seeds, and the
    references of each place.
    """
    means = settings.means([known_measure(measure)]).set_index("setting")
    facts = settings.facts
    if not len(means) and measure != "balanced_accuracy":
        raise UserError(
            "measure",
            f"no row that is ok has a {measure}",
            "look at status and scores in results.jsonl",
        )
    common, places = placed(facts)
    held = {
        label: claim(own) in (*THEOREMS, "not private") for label, own in facts.groupby("label")
    }
    lines = facts.assign(
        where=places,
        method=facts["label"].map(named(facts)),
        kind=(facts["yields"] == "classifier").astype(int),
        rank=facts["label"].map(ordered(settings, measure, order).index),
        text=[
            _value(line, digits)
            for line in facts.join(means[["mean", "low", "high", "n"]])
            .assign(most=_seeds(facts))
            .to_dict("records")
        ],
        mean=means["mean"].astype("float64"),
        holds=facts["label"].map(held),
    )
    first = lines.drop_duplicates("where")[[*PLACE, "where"]]
    labels = set(facts["label"])
    for rank, (name, column) in enumerate(MEASURES[measure].references):
        levels = (
            settings.reference(column)
            .map(lambda level: decimal(level, digits))
            .rename("text")
            .reset_index()
            .merge(first, on=PLACE)
        )
        levels = levels.assign(
            method=reference_name(name, labels),
            kind=_REFERENCE,
            rank=rank,
            epsilon_target=math.nan,
        )
        lines = pd.concat([lines, levels])
    order_of = {place: i for i, place in enumerate(dict.fromkeys(places))}
    lines = lines.assign(place=lines["where"].map(order_of)).sort_values(
        ["place", "kind", "rank"], kind="stable"
    )
    if (best := MEASURES[measure].best) is not None:
        lines["best"] = _best(lines, best, digits)
    numbers = means[
        [*PLACE, "label", "claim", "epsilon_target", "delta", "unit", "trust", "mean", "half", "n"]
    ].assign(measure=measure)
    return _built(
        measure,
        (MEASURES[measure].title, *common),
        lines,
        tuple(_notes(settings, means, measure)),
        numbers,
    )


def _built(
    name: str,
    title: Sequence[str],
    lines: pd.DataFrame,
    notes: Sequence[str],
    numbers: pd.DataFrame,
) -> Table:
    """A table of lines with ``where``, ``method`` and ``text``, whose column is their ``head``,
    else their epsilon; maybe with ``best``.
    """
    if "head" in lines:
        heads = list(lines["head"].unique())
    else:
        heads = None
    if heads is None:
        epsilons = lines["epsilon_target"].astype("float64")
        heads = [
            epsilon_head(epsilon)
            for epsilon in sorted(epsilons.unique(), key=lambda e: (math.isnan(e), e))
        ]
        lines = lines.assign(head=epsilons.map(epsilon_head))
    lines = lines.drop_duplicates(["where", "method", "head"], keep="last")
    index = pd.MultiIndex.from_frame(lines[["where", "method"]].drop_duplicates())
    wide = {
        part: lines.pivot(index=["where", "method"], columns="head", values=part)
        .reindex(index=index)[heads]
        .rename_axis(columns=None)
        for part in ("text", "best")
        if part in lines
    }
    if "best" in wide:
        best = wide["best"].fillna(False).astype(bool)
    else:
        best = None
    return Table(
        name,
        " · ".join(title),
        wide["text"].fillna(""),
        tuple(notes),
        numbers.rename(columns=_OF_NUMBERS),
        best,
    )


def _seeds(facts: pd.DataFrame) -> int:
    """The most seeds that a mean is of."""
    if len(facts):
        return int(facts["seeds"].max())
    return 0


def _value(line: Mapping[Any, Any], digits: int) -> str:
    if math.isnan(line["mean"]):
        if line["seeds"]:
            return ""
        return next((status for status in reversed(UNDRAWN) if line[status]), "")
    return mean_text(line, digits) + (f" (n={line['n']:.0f})" if line["n"] < line["most"] else "")


def _best(lines: pd.DataFrame, best: float, digits: int) -> pd.Series[bool]:
    """The best numbers of a place, kind and column, as far as the digits tell, among two or more
    whose claim holds.
    """
    mean = lines["mean"].round(digits).where(lines["holds"].eq(True))
    if best == math.inf:
        distance = -mean
    else:
        distance = (mean - best).abs().round(digits)
    by = distance.groupby([lines["where"], lines["kind"], lines["epsilon_target"]], dropna=False)
    return (distance == by.transform("min")) & (by.transform("min") < by.transform("max"))


def spread_words(spread: Spread, seeds: int) -> str:
    """What stands beside a mean."""
    if seeds < 2:
        return "one seed, so no interval"
    if spread == "ci95" and seeds == 2:
        return (
            "mean over 2 seeds, without an interval (12.7 times as wide as they are apart): "
            "run more, or give `spread` range"
        )
    beside = {
        "ci95": "half-width of the Student-t 95 % confidence interval",
        "sd": "standard deviation",
        "range": "half the range",
    }
    return f"mean ± {beside[spread]} over {seeds} seeds"


def _notes(settings: SeedGroups, means: pd.DataFrame, measure: str) -> Iterable[str]:
    facts = settings.facts
    if len(means):
        yield spread_words(settings.spread, _seeds(facts))
    if ((means["n"] > (1 if settings.spread != "ci95" else 2)) & means["half"].isna()).any():
        yield "no ±: each seed gave the same"
    if left_out := [
        f"{count} {status}" for status in UNDRAWN if (count := int(facts[status].sum()))
    ]:
        yield f"in no mean: {' and '.join(left_out)} (the report says why)"
    if (judges := settings.averaged["judged"].nunique()) > 1:
        yield (
            f"scores are from {judges} states of the code that judges: the same bench scores "
            "saved generators anew"
        )
    if MEASURES[measure].best is not None:
        yield (
            "bold: the best of a column among generators, and among classifiers, whose claim holds"
        )
    words = {claim(own) for _, own in facts.groupby("label")}
    yield from (
        f"{claim_words(word)}: {text}" for word, text in _CLAIM_NOTES.items() if word in words
    )
    if names := list(dict.fromkeys(facts["public"].dropna())):
        yield f"†: uses public data: {', '.join(map(str, names))}"


def difference_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    digits: int = 3,
    compared: Compared = same_budget,
) -> Table | None:
    """Paired differences of a measure between methods, Holm-corrected over every place; None where
    no two methods share two seeds.
    """
    found = paired_differences(settings, known_measure(measure), compared)
    if not len(found):
        return None
    first, second = (
        settings.facts.loc[found[which]].reset_index() for which in ("first", "second")
    )
    common, places = placed(first)
    without = (first["label"] == second["label"]) & (second["epsilon_target"] == math.inf)
    other = second["label"].where(~without, second["label"] + " at ε = ∞")
    seeds = int(found["n"].max())
    lines = found.assign(
        where=places, method=first["label"] + " − " + other, epsilon_target=first["epsilon_target"]
    )
    lines["text"] = [_difference(line, seeds, digits) for line in found.to_dict("records")]
    notes = (
        "first method minus second, over the seeds that both have; "
        + spread_words(settings.spread, seeds)
        + ", not corrected",
        "p: two-sided paired t-test, Holm-corrected for all differences of one place; none "
        "where the differences do not vary",
    )
    numbers = first[PLACE].assign(
        first=first["label"], second=other, epsilon_target=first["epsilon_target"], measure=measure
    )
    numbers = numbers.join(found[["mean", "half", "n", "p", "p_holm"]])
    return _built(
        f"{measure}-differences",
        (f"{MEASURES[measure].title}, paired differences", *common),
        lines,
        notes,
        numbers,
    )


def chosen_pair(first: str, second: str) -> Compared:
    """SeedGroups that compare two methods, given by their labels: those of one budget, and those
    without noise of the second one.
    """
    return lambda one, other: (
        (one["label"], other["label"]) == (first, second)
        and (same_budget(one, other) or price_of_privacy(one, other))
    )


def _difference(line: Any, seeds: int, digits: int) -> str:
    if math.isnan(line["p_holm"]):
        p = ""
    elif line["p_holm"] < 0.001:
        p = " p<0.001"
    else:
        p = f" p={line['p_holm']:.3f}"
    return mean_text(line, digits, "+") + p + (f" (n={line['n']})" if line["n"] < seeds else "")


def tuned_table(settings: SeedGroups) -> Table | None:
    """What tuned cells chose, and of how many trainings, by method and budget; None where nothing
    was tuned.
    """
    rows = settings.averaged.dropna(subset="tuning")
    if not len(rows):
        return None
    chosen = rows["tuning"].map(
        lambda of: (
            f"{', '.join(f'{name} {spelled(value)}' for name, value in of['chosen'].items())}: "
            f"{of['trained']}"
        )
    )
    facts = settings.facts.loc[rows["setting"].unique()]
    common, places = placed(facts)
    lines = facts.assign(
        where=places, method=facts["label"], text=chosen.groupby(rows["setting"]).agg("; ".join)
    )
    note = (
        "the number of trainings is not private, and no part of what may be released; an ε "
        "that is paid for is of all of them together"
    )
    title = ("Chosen parameters, and how many trainings there were", *common)
    return _built(
        "chosen", title, lines, (note,), lines[["where", "method", "epsilon_target", "text"]]
    )


def site_table(settings: SeedGroups, clients: pd.DataFrame, digits: int = 3) -> Table | None:
    """Balanced accuracy by site: of clients that were judged one by one on their own test rows, and
    of sites that took no part.

    ``clients`` are those of the run, by ``cell_id``. None without sites, or with more than
    :data:`MOST_SITES`.
    """
    rows = settings.averaged[["setting", "seed", "cell_id", "unseen", "balanced_accuracy"]]
    if len(clients) and clients["cell_id"].isin(rows["cell_id"]).any():
        own = {"own_balanced_accuracy": "score", "local_only_balanced_accuracy": "alone"}
        title = "on the site's own test rows"
        scored = rows.merge(clients[["cell_id", "name", *own]].rename(columns=own), on="cell_id")
    else:
        title = "on a site that took no part"
        scored = rows.rename(columns={"unseen": "name", "balanced_accuracy": "score"}).assign(
            alone=math.nan
        )
    scored = scored.astype({"score": "float64", "alone": "float64"}).dropna(
        subset=["name", "score"]
    )
    if not len(scored) or scored["name"].nunique() > MOST_SITES:
        return None
    facts = settings.facts.assign(
        dataset=settings.facts["dataset"].str.replace(r" \(.* unseen\)$", "", regex=True)
    )
    keyed = scored.merge(
        facts.assign(method=facts["label"].map(named(facts))), left_on="setting", right_index=True
    )
    real = keyed.dropna(subset=["alone"]).drop_duplicates([*PLACE, "seed", "name"])
    real = real.assign(
        score=real["alone"], method="the site's own real rows", epsilon_target=math.nan
    )
    keyed = pd.concat([keyed, real]).reset_index(drop=True)
    common, keyed["where"] = placed(keyed, ["epsilon_target"])
    whole = (
        keyed.groupby(["where", "method", "seed"], sort=False)["score"]
        .mean()
        .reset_index()
        .assign(name="mean")
    )
    by = pd.concat([keyed, whole]).groupby(["where", "method", "name"], sort=False)["score"]
    numbers = with_ends(
        by.agg(["mean", "std", "min", "max", "count"]).rename(columns={"count": "n"}).reset_index(),
        settings.spread,
    )
    lines = numbers.assign(
        head=numbers["name"], text=[mean_text(line, digits) for line in numbers.to_dict("records")]
    )
    notes = (
        spread_words(settings.spread, _seeds(facts)),
        "last column: the mean over the sites, of every seed",
    )
    numbers = numbers.rename(columns={"name": "site"}).drop(columns=["low", "high"])
    return _built("sites", ("Balanced accuracy by site", title, *common), lines, notes, numbers)


def measures_of(settings: SeedGroups, *, terminal: bool = False) -> list[str]:
    """The measures with a table that some row has, those of a terminal or all; balanced accuracy
    first, always.

    A terminal has its own, and those of the readouts of grids that ask for others than the default
    ones.
    """
    given = {
        tuple(each)
        for each in settings.rows.get("evaluation.readouts", ())
        if isinstance(each, list | tuple)
    }
    asked = {readout for each in given - {Evaluation().readouts} for readout in each}
    of = {
        name: "fidelity" if measure.fidelity else name.partition("_")[0]
        for name, measure in MEASURES.items()
    }
    shown = [
        name
        for name, measure in MEASURES.items()
        if measure.table and (measure.terminal or of[name] in asked or not terminal)
    ]
    held = [name for name in shown if settings.averaged[name].notna().any()]
    return list(dict.fromkeys(["balanced_accuracy", *held]))
