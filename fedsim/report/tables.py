"""The results table: a line for every method, a column for every epsilon; the same lines for the terminal and for HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.console import Group as RichGroup
from rich.table import Table
from rich.text import Text

from fedsim.evaluation.measures import MEASURES
from fedsim.results.groups import Group, Interval, Spread, grouped, weakest
from fedsim.results.rows import UNDRAWN
from fedsim.words import number, setting

CLAIM_WORDS = {
    "stated": "stated ε",
    "heuristic": "heuristic ε",
    "none": "no claim on ε",
    "refuted": "refuted ε",
    "not private": "not private",
}
"""How a claim other than "proved" is worded beside a label."""
_CLAIM_NOTES = {
    "stated": "the author states the theorem; the column check of the rows says whether a fedsim check refutes it",
    "heuristic": "the number is not a theorem for that method, or a check found a fault",
    "refuted": "an audit refutes what is claimed at one budget or more",
}
SPREADS = {"ci95": "95 % confidence interval", "sd": "standard deviation", "range": "least to most"}
TOO_FEW = "the 95 % confidence interval of two seeds is 12.7 times as wide as they are apart: run more, or give `spread` range"
"""What stands beside means, by the spread that was chosen; and why nothing does."""
ONE_SEED = "one seed, so no interval"
PUBLIC_MARK = " †"
"""Behind the label of a method that used public rows."""
LARGE = 1e6
"""Numbers from it on are written with an exponent."""
_AXES: tuple[Callable[[Group], str], ...] = (
    lambda group: group.dataset,
    lambda group: group.scheme or "",
    lambda group: setting(alpha=group.alpha),
    lambda group: setting(clients=group.clients),
)


THEOREMS = ("proved", "stated")
"""Claims under which a number may be the best of its column; a method without epsilon is best among its own kind."""
BEST_VALUES: dict[str, float | None] = {
    "frechet_distance": 0.0,
    "squared_mmd": 0.0,
    "real_or_synthetic": 0.5,
    "client_spread": 0.0,
    "density": None,
    "personal_weight": None,
}
"""What the best number of a measure would be, where that is not the largest; None: none is best."""


@dataclass(frozen=True)
class Line:
    """A method: its label, its claim, and a text for every column of values.

    ``intervals`` are the numbers behind the texts, None where a text is none; ``p`` are p-values that stand beside them; ``mark`` is behind
    the label.
    """

    label: str
    claim: str
    values: tuple[str, ...]
    intervals: tuple[Interval | None, ...] = ()
    p: tuple[float | None, ...] = ()
    mark: str = ""

    @property
    def marked(self) -> str:
        """The label with its mark."""
        return self.label + self.mark

    @property
    def named(self) -> str:
        """The label with its mark, and a claim that is not "proved"."""
        return self.marked if self.claim in ("proved", "") else f"{self.marked} ({CLAIM_WORDS.get(self.claim, self.claim)})"


@dataclass(frozen=True)
class TableBlock:
    """The methods of one partition; ``place`` names it by what varies in the grid, ``references`` are (name, value)."""

    place: str
    references: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class ResultsTable:
    """Title, heads of the value columns, a block for every partition, and notes that belong below.

    ``heads`` are those of the columns before: of the label, and of the claim where lines have one. ``name`` is a short one without
    blanks, ``best`` what the best number of a column would be (None: none is best), ``digits`` those behind the decimal point.
    """

    title: str
    columns: tuple[str, ...]
    blocks: tuple[TableBlock, ...]
    notes: tuple[str, ...]
    heads: tuple[str, ...] = ("method", "claim")
    name: str = "results"
    best: float | None = None
    digits: int = 3

    def is_best(self, block: TableBlock, line: Line, column: int) -> bool:
        """Whether a number is the best of its column and block, as far as the digits tell, among two or more whose claim holds."""
        if self.best is None or line not in (rivals := self._rivals(block, column)) or len(rivals) < 2:
            return False
        distances = [_distance(rival, column, self.best, self.digits) for rival in rivals]
        return _distance(line, column, self.best, self.digits) == min(distances) < max(distances)

    def _rivals(self, block: TableBlock, column: int) -> list[Line]:
        claims = (*THEOREMS, "not private", "")
        return [line for line in block.lines if line.claim in claims and line.intervals and line.intervals[column] is not None]

    def names(self, line: Line) -> tuple[str, ...]:
        """A line's texts below ``heads``."""
        return (line.marked, CLAIM_WORDS.get(line.claim, line.claim))[: len(self.heads)]


def _distance(line: Line, column: int, best: float, digits: int) -> float:
    interval = line.intervals[column]
    assert interval is not None
    mean = round(interval.mean, digits)
    return -mean if best == math.inf else round(abs(mean - best), digits)


SHORT_TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "worst_class_recall": "worst class",
    "knn_balanced_accuracy": "nearest neighbours",
    "mlp_balanced_accuracy": "small network",
    "client_balanced_accuracy": "clients, mean",
    "client_worst_balanced_accuracy": "worst client",
    "client_shared_balanced_accuracy": "clients, shared generator",
    "personal_accuracy": "interpolated, accuracy",
    "personal_balanced_accuracy": "interpolated, balanced",
    "frechet_distance": "Fréchet distance",
    "coverage": "coverage",
    "real_or_synthetic": "real or synthetic",
}
"""Measures with a table, by what they are called where there is little room: utility first, then clients, then fidelity."""


def shown_measures(groups: Sequence[Group], *, terminal: bool = False) -> list[str]:
    """Every measure that some row has, those of a terminal or all; balanced accuracy always."""
    known = [*SHORT_TITLES, *(name for name, measure in MEASURES.items() if measure.table and name not in SHORT_TITLES)]
    first, *others = (name for name in known if not terminal or MEASURES[name].terminal)
    return [first, *(name for name in others if any(group.interval(name) for group in groups))]


def results_tables(groups: Sequence[Group], *, terminal: bool = False) -> list[ResultsTable]:
    """A table for every one of :func:`shown_measures`."""
    return [results_table(groups, name, once=True) for name in shown_measures(groups, terminal=terminal)]


def results_table(groups: Sequence[Group], measure: str = "balanced_accuracy", digits: int = 3, *, once: bool = False) -> ResultsTable:
    """A measure, means with the groups' spread over seeds, with its references per partition.

    What is the same for all groups (data set, scheme, alpha, clients) stands in the title, the rest over each block.

    Args:
        groups: rows averaged over seeds.
        measure: one of :data:`fedsim.evaluation.measures.MEASURES`.
        digits: behind the decimal point.
        once: whether methods that are the same at every alpha and number of clients have a block of their own instead of a line in each.
    """
    common, members = by_place(groups)
    columns = epsilons(groups)
    seeds = max((len(group.rows) for group in groups), default=0)
    everywhere = same_everywhere(groups, [measure]) if once else set()
    elsewhere = {place: [group for group in block if group.label not in everywhere] for place, block in members.items()}
    first = [group for group in first_places(groups) if group.label in everywhere]
    return ResultsTable(
        title=" · ".join((MEASURES[measure].title, *common)),
        columns=epsilon_heads(columns),
        blocks=(
            *(
                TableBlock(" · ".join(filter(None, (place, EVERYWHERE))), (), _lines(block, columns, seeds, measure, digits))
                for place, block in by_place(first)[1].items()
            ),
            *(
                TableBlock(place, _references(members[place], measure, digits), _lines(block, columns, seeds, measure, digits))
                for place, block in elsewhere.items()
            ),
        ),
        notes=(*_notes(groups, seeds, measure), *([WHY_EVERYWHERE] if everywhere else []), *_classifiers(groups, measure)),
        name=measure,
        best=BEST_VALUES.get(measure, math.inf),
        digits=digits,
    )


EVERYWHERE = "every α and number of clients"
WHY_EVERYWHERE = f"{EVERYWHERE}: the numbers are the same, so they stand here once; they depend on all rows together, whoever holds them"


def same_everywhere(groups: Sequence[Group], measures: Sequence[str]) -> set[str]:
    """Labels of methods that have equal values of every measure at each of two or more alphas and numbers of clients."""
    differing, labels = set[str](), set[str]()
    for members in grouped(groups, lambda group: (group.dataset, group.scheme)).values():
        places = grouped(members, lambda group: (group.alpha, group.clients)).values()
        values: dict[str, list[object]] = {}
        for place in places:
            for label, own in grouped(place, lambda group: group.label).items():
                values.setdefault(label, []).append([(group.epsilon_target, group.values_by_seed(measures)) for group in own])
        labels |= values.keys()
        differing |= {
            label for label, found in values.items() if len(places) < 2 or len(found) < len(places) or found.count(found[0]) < len(found)
        }
    return labels - differing


def shown_once(groups: Sequence[Group], everywhere: Collection[str]) -> list[Group]:
    """The groups of first places, and of the others where some method is not the same everywhere."""
    first = list(map(id, first_places(groups)))
    places = grouped(groups, lambda group: group.place).values()
    shown = [place for place in places if id(place[0]) in first or any(group.label not in everywhere for group in place)]
    return [group for place in shown for group in place]


def first_places(groups: Sequence[Group]) -> list[Group]:
    """The groups of the first alpha and number of clients of each data set and scheme."""
    first = {(group.dataset, group.scheme): (group.alpha, group.clients) for group in reversed(groups)}
    return [group for group in groups if first[group.dataset, group.scheme] == (group.alpha, group.clients)]


def by_place(groups: Sequence[Group]) -> tuple[list[str], dict[str, list[Group]]]:
    """What data set, scheme, alpha and clients are for all groups, in words; and the groups by what differs of these."""
    varied = [axis for axis in _AXES if len({axis(group) for group in groups}) > 1]
    common = [text for axis in _AXES if groups and axis not in varied and (text := axis(groups[0]))]
    return common, grouped(groups, lambda group: " · ".join(text for axis in varied if (text := axis(group))))


def epsilons(groups: Sequence[Group]) -> list[float | None]:
    """The epsilons of some groups, ascending; None, for methods without one, stands last."""
    targets = {group.epsilon_target for group in groups}
    return [*sorted(value for value in targets if value is not None), *([None] if None in targets else [])]


def epsilon_heads(columns: Sequence[float | None]) -> tuple[str, ...]:
    """Heads of the columns of some epsilons."""
    return tuple("no ε" if value is None else f"ε = {number(value)}" for value in columns)


@dataclass(frozen=True)
class TerminalTable:
    """The table as rich prints it: a column for every epsilon, or a line for every epsilon where the terminal is narrow.

    Labels are shown as they are, never read as markup.
    """

    table: ResultsTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, a table for every block, and the notes."""
        wide = [["method", *self.table.columns], *([line.named, *line.values] for line in self._all_lines())]
        widths = [max(map(cell_len, column)) for column in zip(*wide, strict=True)]
        fits = sum(widths) + 2 * len(widths) <= options.max_width
        yield Text(self.table.title, style="bold")
        for block in self.table.blocks:
            yield Text("")
            yield self._head(block)
            if block.lines:
                yield self._wide(block, widths) if fits else self._narrow(block)
        yield Text("\n".join(("", *self.table.notes)), style="dim")

    def _all_lines(self) -> list[Line]:
        return [line for block in self.table.blocks for line in block.lines]

    def _head(self, block: TableBlock) -> Text:
        references = " · ".join(f"{name} {value}" for name, value in block.references)
        return Text.assemble((block.place, "bold cyan"), "   " if block.place and references else "", (references, "dim"))

    def _wide(self, block: TableBlock, widths: Sequence[int]) -> Table:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for position, (name, width) in enumerate(zip(("method", *self.table.columns), widths, strict=True)):
            shown.add_column(Text(name), justify="right" if position else "left", width=width, no_wrap=True)
        for line in block.lines:
            shown.add_row(Text(line.named), *map(Text, line.values))
        return shown

    def _narrow(self, block: TableBlock) -> Table:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        shown.add_column("method", overflow="fold")
        shown.add_column("budget", no_wrap=True)
        shown.add_column("mean", justify="right", no_wrap=True)
        for line in block.lines:
            values = [(name, value) for name, value in zip(self.table.columns, line.values, strict=True) if value]
            for position, (name, value) in enumerate(values):
                shown.add_row(Text(line.named if position == 0 else ""), Text(name), Text(value))
        return shown


def rich_tables(groups: Sequence[Group], more: Sequence[ResultsTable] = ()) -> RichGroup:
    """The results tables of some groups, and more tables, for ``Console.print``."""
    return RichGroup(*map(TerminalTable, (*results_tables(groups, terminal=True), *more)))


def _lines(groups: Sequence[Group], columns: Sequence[float | None], seeds: int, measure: str, digits: int) -> tuple[Line, ...]:
    by_label: dict[str, dict[float | None, Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, {})[group.epsilon_target] = group
    return tuple(
        Line(
            label,
            claim(list(cells.values())),
            tuple(_value(cells.get(column), seeds, measure, digits) for column in columns),
            tuple(cells[column].interval(measure) if column in cells else None for column in columns),
            mark=PUBLIC_MARK if any(group.public for group in cells.values()) else "",
        )
        for label, cells in by_label.items()
    )


def claim(groups: Sequence[Group]) -> str:
    """The claim of a method's finite epsilons, or "refuted" if one of them was; "not private" for a method without epsilon."""
    if all(group.epsilon_target is None for group in groups):
        return "not private"
    if any(group.refuted for group in groups):
        return "refuted"
    # At epsilon = ∞ there is no noise, so nothing to claim: the finite budgets speak.
    finite = [group for group in groups if group.epsilon_target is not None and math.isfinite(group.epsilon_target)]
    return weakest({group.claim for group in finite or groups}) or ""


def _value(group: Group | None, seeds: int, measure: str, digits: int) -> str:
    if group is None:
        return ""
    interval = group.interval(measure)
    if interval is None:
        return "" if group.rows else next((status for status in reversed(UNDRAWN) if getattr(group, status)), "")
    missing = f" (n={interval.count})" if interval.count < seeds else ""
    return mean_text(interval, digits) + missing


def mean_text(interval: Interval, digits: int = 3) -> str:
    """A mean with what stands beside it."""
    beside = "" if interval.beside is None else f"±{decimal(interval.beside, digits)}"
    return decimal(interval.mean, digits) + beside


def decimal(value: float, digits: int = 3) -> str:
    """To so many decimals; a large one, that no column holds, to four digits."""
    return number(value, 4) if abs(value) >= LARGE else f"{value:.{digits}f}"


def _references(groups: Sequence[Group], measure: str, digits: int) -> tuple[tuple[str, str], ...]:
    levels = [(name, reference(groups, field)) for name, field in MEASURES[measure].references]
    return tuple((name, decimal(level, digits)) for name, level in levels if level is not None)


def reference(groups: Sequence[Group], measure: str) -> float | None:
    """The mean of a reference over the partitions of some groups, each the mean of its rows: not every method has a row of each seed."""
    by_partition: dict[str | None, list[float]] = {}
    for row in (row for group in groups for row in group.rows):
        if (value := row.value(measure)) is not None:
            by_partition.setdefault(row.partition_hash, []).append(value)
    return fmean(map(fmean, by_partition.values())) if by_partition else None


def _classifiers(groups: Sequence[Group], measure: str) -> tuple[str, ...]:
    """Which of the methods in a table predict and do not generate."""
    labels = dict.fromkeys(group.label for group in groups if group.classifies and group.interval(measure))
    return (f"classifiers, which generate no rows: {', '.join(labels)}",) if labels else ()


def spread_words(spread: Spread, seeds: int) -> str:
    """What stands beside a mean over two seeds or more."""
    if spread == "ci95":
        shown = f"mean ± half-width of the Student-t 95 % confidence interval over {seeds} seeds"
        return shown if seeds > 2 else f"mean over 2 seeds, without intervals: {TOO_FEW}"
    return f"mean ± {'standard deviation' if spread == 'sd' else 'half the range'} over {seeds} seeds"


def _notes(groups: Sequence[Group], seeds: int, measure: str) -> tuple[str, ...]:
    notes = []
    if seeds == 1:
        notes.append(ONE_SEED)
    elif seeds:
        notes.append(spread_words(groups[0].spread, seeds))
    few = 1 if groups and groups[0].spread != "ci95" else 2
    if any(interval.half_width is None and interval.count > few for group in groups if (interval := group.interval(measure))):
        notes.append("no ±: each seed gave the same")
    if (judges := len({row.judged for group in groups for row in group.rows})) > 1:
        notes.append(f"scores are from {judges} states of the code that judges: the same bench scores saved generators anew")
    counts = {word: sum(getattr(group, word) for group in groups) for word in UNDRAWN}
    if any(counts.values()):
        left_out = " and ".join(f"{count} {word}" for word, count in counts.items() if count)
        notes.append(f"in no mean: {left_out} (the report says why)")
    claims = {claim([group]) for group in groups}
    notes += [f"{CLAIM_WORDS[name]}: {text}" for name, text in _CLAIM_NOTES.items() if name in claims]
    return (*notes, *filter(None, [public_words(groups)]))


def public_words(groups: Sequence[Group]) -> str:
    """What the mark of public data stands for; empty where no method used any."""
    names = dict.fromkeys(group.public for group in groups if group.public)
    return f"†: uses public data: {', '.join(map(str, names))}" if names else ""
