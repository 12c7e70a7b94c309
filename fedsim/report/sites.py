"""Clients one by one: tables by site, and what each one's own generator gives it against the one that all share, a dot a client."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fedsim.report.figures import INK, MUTED, PAPER, SMALL, dress, name_epsilons, shades, style
from fedsim.report.tables import (
    ONE_SEED,
    PUBLIC_MARK,
    Line,
    ResultsTable,
    TableBlock,
    by_place,
    claim,
    epsilon_heads,
    epsilons,
    mean_text,
    public_words,
    spread_words,
)
from fedsim.results.groups import Group, Interval, grouped
from fedsim.words import setting

SITES = "sites"
_COLUMNS, _MOST = 4, 16
_CHARACTERS, _MOST_LINES = 36, 3
"""Of a title: characters of a line that stay over the panel, and lines of the method and of the place."""
_SIDE, _GAP_X, _GAP_Y, _LEFT, _TOP, _BOTTOM, _LINE = 2.25, 0.55, 0.85, 0.6, 0.75, 0.85, 0.14
"""Sizes in inches."""
_CAPTION = (
    "A dot: one client on its own test rows, the mean over seeds; the worst one of each ε is named. Above the line its own generator\n"
    "(or classifier) serves it better than the shared one. A method with one for all has its dots on the line."
)


@dataclass(frozen=True)
class Dot:
    """One client at one budget: its name, balanced accuracy by the shared generator and by its own, means over seeds."""

    name: str
    shared: float
    own: float


@dataclass(frozen=True)
class SitePanel:
    """One method at one place: a title, and the clients' dots by epsilon (None: it has no epsilon)."""

    title: str
    dots: Mapping[float | None, Sequence[Dot]]


MOST_SITES = 24
"""So many columns of sites a table has at most; of more clients there is none."""
_OWN_ROWS = "the site's own real rows"
_NOTE = "last column: the mean over the sites, of every seed"

Scores = Mapping[str, Mapping[int | None, float]]
"""Balanced accuracy by site and seed."""


def site_tables(groups: Sequence[Group], lines: Iterable[Mapping[str, Any]], digits: int = 3) -> list[ResultsTable]:
    """Balanced accuracy by site, of clients that were judged one by one and of sites that were left out; methods down, sites across.

    Args:
        groups: rows averaged over seeds.
        lines: what ``ResultStore.clients`` gave.
        digits: behind the decimal point.
    """
    by_cell = grouped(lines, lambda line: line["cell_id"])
    judged: list[tuple[Group, Scores]] = []
    alone: dict[tuple[object, ...], tuple[Group, Scores]] = {}
    for group in groups:
        held = [(row.seed, line) for row in group.rows for line in by_cell.get(row.cell_id, ())]
        if scores := _by_site((line["name"], seed, line["own_balanced_accuracy"]) for seed, line in held):
            judged.append((group, scores))
            own = replace(group, label=_OWN_ROWS, epsilon_target=None, claim=None, yields=None)
            real = _by_site((line["name"], seed, line["local_only_balanced_accuracy"]) for seed, line in held)
            alone.setdefault(group.place, (own, real))
    judged += [(group, scores) for group, scores in alone.values() if scores]
    left_out = [(_without_site(group), group) for group in groups if group.rows and group.rows[0].unseen]
    unseen = grouped(left_out, lambda pair: (pair[0].dataset, *(getattr(pair[0], name) for name in _PLACE)))
    rest = [
        (members[0][0], _by_site((row.unseen or "", row.seed, row.balanced_accuracy) for _, group in members for row in group.rows))
        for members in unseen.values()
    ]
    tables = (
        _table("on the site's own test rows", "sites", judged, digits),
        _table("on a site that took no part", "unseen-sites", rest, digits),
    )
    return [table for table in tables if table is not None]


_PLACE = ("scheme", "alpha", "clients", "label", "epsilon_target")


def _without_site(group: Group) -> Group:
    """A group under the name of its data set alone."""
    return replace(group, dataset=group.dataset.removesuffix(f" ({group.rows[0].unseen} unseen)"))


def _by_site(scored: Iterable[tuple[str, int | None, float | None]]) -> Scores:
    scores: dict[str, dict[int | None, float]] = {}
    for site, seed, score in scored:
        if score is not None:
            scores.setdefault(site, {})[seed] = score
    return scores


def _table(title: str, name: str, held: Sequence[tuple[Group, Scores]], digits: int) -> ResultsTable | None:
    """A block for every place and epsilon; None without sites, or with too many."""
    sites = list(dict.fromkeys(site for _, scores in held for site in scores))
    if not sites or len(sites) > MOST_SITES:
        return None
    groups, scores_of = [group for group, _ in held], {id(group): scores for group, scores in held}
    claims = {label: claim(own) for label, own in grouped(groups, lambda group: group.label).items()} | {_OWN_ROWS: ""}
    common, places = by_place(groups)
    seeds = max(len(by_seed) for _, scores in held for by_seed in scores.values())
    blocks = []
    for place, members in places.items():
        for epsilon, head in zip(epsilons(members), epsilon_heads(epsilons(members)), strict=True):
            own = [group for group in members if group.epsilon_target == epsilon]
            lines = [_line(group, claims[group.label], scores_of[id(group)], sites, digits) for group in own]
            blocks.append(TableBlock(" · ".join(filter(None, (place, head))), (), tuple(lines)))
    return ResultsTable(
        title=" · ".join(("Balanced accuracy by site", title, *common)),
        columns=(*sites, "mean"),
        blocks=tuple(blocks),
        notes=(spread_words(groups[0].spread, seeds) if seeds > 1 else ONE_SEED, _NOTE, *filter(None, [public_words(groups)])),
        name=name,
        best=math.inf,
        digits=digits,
    )


def _line(group: Group, claimed: str, scores: Scores, sites: Sequence[str], digits: int) -> Line:
    seeds = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    means = [fmean(by_seed[seed] for by_seed in scores.values()) for seed in sorted(seeds, key=str)]
    values = [list(scores.get(site, {}).values()) for site in sites] + [means]
    intervals = [Interval.of(held, group.spread) if held else None for held in values]
    texts = ("" if interval is None else mean_text(interval, digits) for interval in intervals)
    return Line(group.label, claimed, tuple(texts), tuple(intervals), mark=PUBLIC_MARK if group.public else "")


def site_panels(groups: Sequence[Group], lines: Iterable[Mapping[str, Any]]) -> list[SitePanel]:
    """A panel for every method and place whose clients were judged one by one, in the groups' order.

    Args:
        groups: rows averaged over seeds.
        lines: what ``ResultStore.clients`` gave.
    """
    by_cell = grouped(lines, lambda line: line["cell_id"])
    panels: dict[str, dict[float | None, list[Dot]]] = {}
    for group in groups:
        if dots := _dots([line for row in group.rows for line in by_cell.get(row.cell_id, ())]):
            place = setting(group.dataset, alpha=group.alpha, clients=group.clients)
            panels.setdefault(f"{group.label}\n{place}", {})[group.epsilon_target] = dots
    return [SitePanel(title, dots) for title, dots in panels.items()]


def _dots(lines: Iterable[Mapping[str, Any]]) -> list[Dot]:
    """Means over cells by the client's name; clients without a score are left out."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        pair = line["shared_balanced_accuracy"], line["own_balanced_accuracy"]
        if None not in pair:
            scores.setdefault(line["name"], []).append(pair)
    return [Dot(name, fmean(x for x, _ in pairs), fmean(y for _, y in pairs)) for name, pairs in scores.items()]


def draw_sites(groups: Sequence[Group], lines: Iterable[Mapping[str, Any]]) -> Figure | None:
    """A square a method, the shared generator's balanced accuracy to the right, the own one's upwards; None where no client was judged."""
    panels = site_panels(groups, lines)
    if not panels:
        return None
    with style():
        return _figure(panels[:_MOST], _CAPTION + (f" {_MOST} of {len(panels)} are drawn." if len(panels) > _MOST else ""))


def _figure(panels: Sequence[SitePanel], caption: str) -> Figure:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = max(_LEFT + columns * (_SIDE + _GAP_X), 7.5)
    more = _LINE * max(_title(panel).count("\n") - 1 for panel in panels)
    gap, top = _GAP_Y + more, _TOP + more
    height = top + rows * (_SIDE + gap) - gap + _BOTTOM + 0.35
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    colours = shades(epsilon for panel in panels for epsilon in panel.dots)
    values = [value for panel in panels for dots in panel.dots.values() for dot in dots for value in (dot.shared, dot.own)]
    low, high = min(values), max(values)
    margin = 0.06 * max(high - low, 0.1)
    limits = (max(low - margin, -0.02), min(high + margin, 1.02))
    for position, panel in enumerate(panels):
        row, column = divmod(position, columns)
        left, bottom = _LEFT + column * (_SIDE + _GAP_X), height - top - _SIDE - row * (_SIDE + gap)
        _draw(figure.add_axes((left / width, bottom / height, _SIDE / width, _SIDE / height)), panel, colours, limits)
    handles = [Line2D([], [], linestyle="", marker="o", markersize=5, color=colour) for colour in colours.values()]
    name_epsilons(figure, colours, handles, (0.1 / width, 1 - 0.06 / height))
    figure.text(0.12 / width, 0.1 / height, caption, color=MUTED, fontsize=7.5, va="bottom", linespacing=1.4)
    return figure


def _title(panel: SitePanel) -> str:
    """Method and place, a line each or as many as it takes to stay over the panel."""
    return "\n".join(textwrap.fill(part, _CHARACTERS, max_lines=_MOST_LINES, placeholder="…") for part in panel.title.split("\n"))


def _draw(axes: Axes, panel: SitePanel, colours: Mapping[float | None, str], limits: tuple[float, float]) -> None:
    dress(axes, "both", 0.7)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, length=2.5, pad=2)
    axes.plot(limits, limits, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=2)
    for epsilon, dots in panel.dots.items():
        colour = colours[epsilon]
        axes.scatter([dot.shared for dot in dots], [dot.own for dot in dots], s=20, color=colour, zorder=3, linewidths=0)
        worst = min(dots, key=lambda dot: dot.own)
        axes.scatter([worst.shared], [worst.own], s=70, facecolors="none", edgecolors=colour, linewidths=1.1, zorder=3)
        axes.annotate(
            worst.name, (worst.shared, worst.own), xytext=(6, -3), textcoords="offset points", fontsize=SMALL, color=INK, parse_math=False
        )
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set_title(_title(panel), fontsize=SMALL, color=INK, loc="left", pad=4, parse_math=False)
    axes.set_xlabel("shared", fontsize=SMALL, color=MUTED, labelpad=1, loc="right")
    axes.set_ylabel("own", fontsize=SMALL, color=MUTED, labelpad=1, loc="top")
