"""The figures of a report.

Each function prepares points and lets :func:`fedsim.report.panels.facet` draw them. Only the
partitions are drawn into blank panels.

- :func:`utility`: a measure against epsilon;
- :func:`fidelity`: how similar synthetic and real embeddings are, against epsilon;
- :func:`communication`: balanced accuracy against megabytes;
- :func:`over_parameter`: a measure against a scanned parameter or a cost;
- :func:`sites`: the scores of every client;
- :func:`partitions`: the number of examples by class and client;
- :func:`diagnostics`: losses and other numbers of every round.

No figure is private: scores, counts and diagnostics are computed from the real data without noise.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.grid.models import Published
from fedsim.partition.matrix import MOST_PANELS, LabelMatrix
from fedsim.report.findings import ROUND_NUMBERS, loss_words
from fedsim.report.names import (
    epsilon_head,
    known_measure,
    most_seeds,
    placed,
    reference_name,
    spread_words,
)
from fedsim.report.panels import (
    MUTED,
    STYLE,
    blank_panels,
    epsilon_axis,
    facet,
    looks,
    published_look,
    reference_look,
    shades,
    side_by_side,
)
from fedsim.report.published import published_lines
from fedsim.results.columns import Row
from fedsim.results.stats import PLACE, SeedGroups
from fedsim.words import number, setting, spelled

EPSILON = "privacy budget ε (∞: no noise)"
"""The label of the epsilon axis."""
LEAST_BOUND = 0.01
"""The least epsilon of an audit that is drawn.

Smaller bounds say nothing, and a logarithmic axis has no place for zero.
"""
COSTS = {"bytes": "MB that a client sends and receives", "seconds": "seconds of training"}
"""The costs that the option ``over`` accepts beside parameters, each with its axis label."""
_IDEALS = {
    None: " (real data has 1)",
    math.inf: " (higher is better)",
    0.0: " (lower is better)",
}
"""The words for the best value of a fidelity measure, by that value.

None stands for measures without a best value. Titles of other measures name the best value.
"""
_FEW = 24
"""The largest number of clients whose names and counts are written into a panel."""
_MOST_ACROSS = 200
"""The largest number of clients in a panel; further ones are not drawn."""
_MOST_DOWN = 60
"""The largest number of classes in a panel; of more classes only every k-th one is drawn."""
_MOST_METHODS = 6
"""The largest number of methods in the figure of the rounds."""
_POINTS = 100
"""The largest number of points of a line over the rounds; a panel has too few pixels for more."""


def caption_of(settings: SeedGroups) -> str:
    """Return the caption of a figure: the spread, the budget, and the meaning of crosses.

    Args:
        settings: The results that are drawn.
    """
    facts = settings.facts[settings.facts["seeds"] > 0]
    sentences = [spread_words(settings.spread, most_seeds(facts))]
    budgets = facts.dropna(subset="epsilon_target")[["unit", "trust", "delta"]].drop_duplicates()
    if len(budgets) == 1:
        unit, trust, delta = budgets.to_numpy()[0]
        sentences.append(f"Privacy: unit {unit}, trust {trust}, δ = {number(delta)}.")
    if (facts["yields"] == "classifier").any():
        sentences.append("Thin lines with crosses: classifiers, which generate no data.")
    return " ".join(sentences)


def utility_caption(settings: SeedGroups) -> str:
    """Return the caption of :func:`utility`, which also explains the ticks of audits, if any."""
    caption = caption_of(settings)
    if _audit_ticks(settings).notna().any():
        caption += " Ticks: an audit refutes any smaller ε with a confidence of 95 %."
    return caption


def _audit_ticks(settings: SeedGroups) -> pd.Series[float]:
    """Return where the tick of each setting's audit is, by setting; NaN if none is drawn."""
    audits = settings.averaged.groupby("setting")["audit_epsilon_lower"].max().astype("float64")
    return audits.where(audits > LEAST_BOUND).apply(np.log10)


def _points(
    settings: SeedGroups, measures: Sequence[str], published: Sequence[Published] = ()
) -> tuple[pd.DataFrame, dict[float, str]]:
    """Return one point per setting and measure that has values, and the ticks of epsilon.

    Args:
        settings: The results.
        measures: The names of the measures.
        published: The published numbers. Those of the first measure become points, too.

    Returns:
        The points: the lines of :meth:`SeedGroups.means`, with ``at`` (the position on the epsilon
        axis, with methods side by side) and ``place`` (what differs between the data sets and
        partitions, in words). ``low`` and ``high`` are clipped to the range of the measure. And the
        text of each tick, by its position.
    """
    means = settings.means(measures)
    numbers = published_lines(published, measures[0], means)
    if len(numbers):
        means = pd.concat([means, numbers], ignore_index=True)
    means = means.astype({"epsilon_target": "float64"})
    least = {name: measure.least for name, measure in MEASURES.items()}
    most = {name: measure.most for name, measure in MEASURES.items()}
    at, ticks = epsilon_axis(means["epsilon_target"])
    points = means.assign(
        low=means["low"].clip(lower=means["measure"].map(least)),
        high=means["high"].clip(upper=means["measure"].map(most)),
        at=means["epsilon_target"].map(at),
        place=placed(means)[1],
    )
    if ticks:
        points["at"] = side_by_side(points, ticks)
    return points, ticks


def _title(points: pd.DataFrame) -> str:
    """Return the title of a figure: data set, partition and what else all points share."""
    return " · ".join(placed(points)[0])


def utility(
    settings: SeedGroups, measure: str = "balanced_accuracy", width: float | None = None
) -> Figure | None:
    """Return the privacy-utility curves: a measure against epsilon.

    There is a row of panels per data set, scheme and number of clients, and a panel per alpha. A
    tick marks the lower bound of an audit, and a line joins it to the claimed epsilon. A hollow
    mark is a published number.

    Args:
        settings: The results.
        measure: The name of the measure.
        width: The width in inches; default: as wide as the report page.

    Returns:
        The figure, or None if no result has the measure.

    Raises:
        UserError: There is no such measure.
    """
    points, ticks = _points(settings, [known_measure(measure)], settings.published)
    if points.empty:
        return None
    title = _title(points)
    points["bound"] = points["setting"].map(_audit_ticks(settings))
    partitions_but_alpha = points.groupby(
        ["dataset", "scheme", "clients"],
        dropna=False,
        sort=False,
    )
    points["row"] = partitions_but_alpha.ngroup()
    panels = points.drop_duplicates(PLACE)[[*PLACE, "row", "place"]]
    look = looks(settings.facts)
    for position, entry in enumerate(settings.published):
        look[entry.display] = published_look(entry.display, position)
    labels = set(look)
    for name, column in MEASURES[measure].references:
        line = reference_name(name, labels)
        look[line] = reference_look(name, line)
        # A merge, unlike a join, also finds places without an alpha.
        levels = settings.reference(column).reset_index(name="mean").merge(panels, on=PLACE)
        if len(levels):
            points = pd.concat(
                [points, levels.assign(label=line)],
                ignore_index=True,
            )
    return facet(
        points,
        ("at", "mean", "place", "label"),
        look,
        row="row",
        title=title,
        labels=(EPSILON, MEASURES[measure].title),
        width=width,
        ticks=ticks,
    )


def fidelity(settings: SeedGroups) -> Figure | None:
    """Return how similar synthetic embeddings are to real ones, against epsilon.

    There is a row of panels per place and a panel per measure of fidelity.

    Returns:
        The figure, or None if no result has such a measure.
    """
    titles = {
        name: f"{measure.title}{_IDEALS.get(measure.best, '')}"
        for name, measure in MEASURES.items()
        if measure.fidelity
    }
    points, ticks = _points(settings, list(titles))
    if points.empty:
        return None
    return facet(
        points.assign(title=points["measure"].map(titles)),
        ("at", "mean", "title", "label"),
        looks(settings.facts),
        row="place",
        title=_title(points),
        labels=(EPSILON, ""),
        ticks=ticks,
        shared=False,
    )


def communication(settings: SeedGroups) -> Figure | None:
    """Return balanced accuracy against the megabytes that a client sends and receives.

    There is a panel per place (data set and partition) and epsilon. A method without an epsilon is
    drawn in every panel of its place. A method that sends nothing is left out, because the axis is
    logarithmic.

    Returns:
        The figure, or None if all methods send equally much.
    """
    cells = settings.averaged
    points, _ = _points(settings, ["balanced_accuracy"])
    costs = _megabytes(cells).groupby(cells["setting"]).mean()
    points = points.assign(cost=points["setting"].map(costs)).query("cost > 0")
    if points["cost"].nunique() < 2:
        return None
    targets = points["epsilon_target"]
    panels = []
    for epsilon in sorted(targets.dropna().unique()) or [math.nan]:
        panel_points = points[targets.isna() | (targets == epsilon)]
        panels.append(panel_points.assign(budget=epsilon_head(epsilon)))
    points = pd.concat(panels).sort_values(
        "setting",
        kind="stable",
        ignore_index=True,
    )
    return facet(
        points.assign(panel=_beside(points["place"], points["budget"])),
        ("cost", "mean", "panel", "label"),
        looks(settings.facts, joined=False),
        row="place",
        title=_title(points),
        labels=(COSTS["bytes"], "balanced accuracy"),
        logarithmic=True,
    )


def _beside(place: pd.Series[str], words: pd.Series[str]) -> pd.Series[str]:
    """Return each place, if there is one to name, followed by some words."""
    return place.where(place == "", place + " · ") + words


def _megabytes(cells: pd.DataFrame) -> pd.Series[float]:
    """Return how many megabytes one client sends and receives in each training."""
    both = cells["uplink_bytes"].astype("float64") + cells["downlink_bytes"].astype("float64")
    return both / cells["clients"].astype("float64") / 1e6


def sites(settings: SeedGroups, clients: pd.DataFrame) -> Figure | None:
    """Return a figure with a dot for every client.

    The x axis is the balanced accuracy of the shared generator, and the y axis is the balanced
    accuracy of the client's own generator. So the own generator is better above the diagonal. There
    is a panel per method and place.

    Args:
        settings: The results.
        clients: The evaluations of single clients, with ``cell_id`` and ``name``; may be empty.

    Returns:
        The figure, or None if no client has both scores.
    """
    names = ["shared_balanced_accuracy", "own_balanced_accuracy"]
    if clients.empty:
        return None
    with_both = clients[["cell_id", "name", *names]].dropna(subset=names)
    scores = settings.averaged[["setting", "cell_id"]].merge(with_both, on="cell_id")
    if scores.empty:
        return None
    by_client = scores.astype(dict.fromkeys(names, "float64")).groupby(["setting", "name"])
    means = by_client[names].mean().reset_index()
    points = means.merge(
        settings.facts,
        left_on="setting",
        right_index=True,
    )
    points = points.assign(
        panel=_beside(placed(points)[1], points["label"]),
        budget=points["epsilon_target"].map(epsilon_head),
    )
    figure = facet(
        points,
        (names[0], names[1], "panel", "budget"),
        shades(points["epsilon_target"], marker=".", linestyle="none"),
        title=_title(points),
        labels=("balanced accuracy of the shared generator", "of the client's own generator"),
    )
    drawn = points[names].to_numpy()
    ends = (drawn.min() - 0.03, drawn.max() + 0.03)
    for axes in figure.axes:
        axes.axline(
            (0.5, 0.5),
            slope=1,
            color=MUTED,
            linewidth=0.8,
            linestyle=(0, (1, 2)),
        )
        axes.set(xlim=ends, ylim=ends)
    return figure


def over_parameter(
    results: Sequence[Row], over: str, measure: str, width: float | None = None
) -> Figure:
    """Return a measure against a scanned parameter, or against what a training costs.

    There is a panel per place and epsilon. The x axis is logarithmic if all values are positive
    numbers and the largest is at least ten times the smallest. If a value is no number, all
    values are equally far apart, in alphabetical order. Values that are null are left out.

    Args:
        results: The results of a run.
        over: The name of a parameter such as ``rounds``, or ``bytes`` or ``seconds``.
        measure: The name of the measure.
        width: The width in inches; default: as wide as the report page.

    Raises:
        UserError: There is no such measure, or no method has the measure at two values of
            ``over``.
    """
    points = _scan_points(results, over, measure)
    if points.empty:
        known = {name for row in results for name in row.params} | {*COSTS}
        if over not in known:
            raise UserError(
                f"over {over}",
                "no method has this parameter",
                nearest(over, ["epsilon", *known]),
            )
        raise UserError(
            f"over {over}",
            f"no method has this score at two values of {over}, so no curve can be drawn",
            "scan a parameter in the grid, such as scan: {rounds: [...]}",
        )
    ticks = None
    logarithmic = False
    if all(isinstance(value, int | float) for value in points["at"]):
        least = points["at"].min()
        logarithmic = bool(least > 0 and points["at"].max() >= 10 * least)
    else:
        texts = points["at"].map(spelled)
        places = {text: float(place) for place, text in enumerate(sorted(set(texts)))}
        ticks = {place: text for text, place in places.items()}
        points["at"] = texts.map(places)
    points = points.astype({"at": "float64"})
    points = points.sort_values("at", kind="stable", ignore_index=True)
    heads = points["epsilon_target"].map(epsilon_head)
    return facet(
        points.assign(panel=_beside(points["place"], heads)),
        ("at", "mean", "panel", "label"),
        looks(points),
        title=_title(points),
        labels=(COSTS.get(over, over), MEASURES[measure].title),
        width=width,
        ticks=ticks,
        logarithmic=logarithmic,
    )


def _scan_points(results: Sequence[Row], over: str, measure: str) -> pd.DataFrame:
    """Return the points of methods that have a measure at two or more values of a parameter.

    Returns:
        The lines of :func:`_points` with ``at`` (the value of the parameter or cost) and ``label``
        (the method's label without what the scan appended to it). A cost is the mean over seeds.
    """
    rows = [row for row in results if over in COSTS or over in row.params]
    settings = SeedGroups.of(rows)
    cells = settings.averaged
    if over in COSTS:
        costs = {"bytes": _megabytes(cells), "seconds": cells["train_seconds"]}
        at = costs[over].groupby(cells["setting"]).mean()
    else:
        values = cells.get(
            f"params.{over}",
            pd.Series(math.nan, cells.index),
        )
        at = values.groupby(cells["setting"]).first()
    lines = {row.cell_id: _line_label(row, over) for row in rows}
    labels = cells["cell_id"].map(lines).groupby(cells["setting"]).first()
    points, _ = _points(settings, [known_measure(measure)])
    points = points.assign(
        at=points["setting"].map(at),
        label=points["setting"].map(labels),
    )
    points = points.dropna(subset="at")
    curves = points.groupby(
        [*PLACE, "epsilon_target", "label"],
        dropna=False,
    )
    return points[curves["at"].transform("nunique") > 1]


def _line_label(row: Row, over: str) -> str:
    """Return a result's label without what a scan appended to it.

    Args:
        row: The result.
        over: The parameter on the x axis, whose value is dropped from the label. If the axis is a
            cost, the values of all parameters are dropped.
    """
    label: str = row.label
    names = [over]
    if over in COSTS:
        names = list(row.params)
    for name in names:
        value = row.params[name]
        label = label.replace(f" {name}={spelled(value)}", "")
        # A scan of [0, 0.5] writes 0 into the label where the result has 0.0.
        if isinstance(value, float) and value.is_integer():
            label = label.replace(f" {name}={spelled(int(value))}", "")
    return label


def partitions(matrices: Sequence[LabelMatrix]) -> Figure | None:
    """Return a heat map for every partition of the first seed, at most 12.

    Classes run from top to bottom and clients from left to right. A field is darker the more
    examples of the class the client has. If there are many clients or classes, only some are drawn,
    and the title of the panel says which. The counts are exact, so the figure is not private.

    Args:
        matrices: The label-by-client matrices of all partitions and seeds.

    Returns:
        The figure, or None if there is no partition.
    """
    drawn = [matrix for matrix in matrices if matrix.seed == matrices[0].seed][:MOST_PANELS]
    if not drawn:
        return None
    columns = min(len(drawn), 3)
    most_classes = max(len(matrix.classes) for matrix in drawn)
    height = (1.3 + 0.2 * min(most_classes, _MOST_DOWN)) * math.ceil(len(drawn) / columns)
    with matplotlib.rc_context(STYLE):
        figure, panels = blank_panels(
            len(drawn),
            columns,
            (max(4.0 * columns, 8.0), height),
        )
        for axes, matrix in zip(panels, drawn, strict=True):
            _draw_matrix(axes, matrix)
    return figure


def _draw_matrix(axes: Axes, matrix: LabelMatrix) -> None:
    """Draw one partition, with names and counts if it has few clients."""
    step = math.ceil(len(matrix.classes) / _MOST_DOWN)
    counts = matrix.counts[:_MOST_ACROSS, ::step].T
    axes.grid(False)
    # Square roots keep small counts visible beside large ones.
    darkest = 2 * math.sqrt(counts.max() or 1)
    axes.imshow(
        np.sqrt(counts),
        cmap="Blues",
        vmin=0,
        vmax=darkest,
        aspect="auto",
    )
    title = setting(
        matrix.dataset,
        matrix.scheme,
        alpha=matrix.alpha,
        clients=matrix.clients,
        seed=matrix.seed,
    )
    if matrix.clients > _MOST_ACROSS:
        title += f" (the first {_MOST_ACROSS} clients)"
    if step > 1:
        title += f" (one in {step} of the {len(matrix.classes)} classes)"
    axes.set(
        title=textwrap.fill(title, 44),
        xlabel="client",
        ylabel="class",
    )
    axes.set_yticks(range(len(counts)), matrix.classes[::step])
    if matrix.clients > _FEW:
        return
    axes.set_xticks(
        range(matrix.clients),
        matrix.names,
        rotation=90 if matrix.sites else 0,
    )
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            str(count or ""),
            ha="center",
            va="center",
            fontsize=7.5,
        )


def diagnostics(settings: SeedGroups, rounds: pd.DataFrame) -> Figure | None:
    """Return the diagnostics over the rounds: a row of panels per number, a panel per method.

    Lines are means over seeds and places, one per epsilon. Values that are not finite are left
    out, and so are all methods after the first six.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`fedsim.report.findings.round_frame`.

    Returns:
        The figure, or None if no method has two rounds to draw.
    """
    losses = [name for name in rounds.columns if name.startswith("loss_")]
    titles = {name: f"loss: {loss_words(name)}" for name in losses} | ROUND_NUMBERS
    facts = settings.facts[[*PLACE, "label", "epsilon_target"]]
    drawn = rounds.merge(facts, left_on="setting", right_index=True)
    drawn = drawn[drawn["label"].isin(drawn["label"].unique()[:_MOST_METHODS])]
    if drawn.empty:
        return None
    # Neighbouring rounds are averaged, so that a line has at most _POINTS points.
    width = math.ceil((drawn["round"].max() + 1) / _POINTS)
    drawn = drawn.assign(x=drawn["round"] // width * width)
    keys = ["label", "epsilon_target", "x"]
    numbers = drawn[list(titles)]
    numbers = numbers.where(numbers.abs() < math.inf)
    by_point = numbers.groupby(
        [drawn[key] for key in keys],
        dropna=False,
        sort=False,
    )
    points = (
        by_point.mean()
        .reset_index()
        .melt(
            keys,
            var_name="number",
            value_name="y",
        )
    )
    points = points.dropna(subset="y")
    points = points[points.groupby(["label", "number"])["x"].transform("nunique") > 1]
    if points.empty:
        return None
    return facet(
        points.assign(
            budget=points["epsilon_target"].map(epsilon_head), number=points["number"].map(titles)
        ),
        ("x", "y", "label", "budget"),
        shades(points["epsilon_target"]),
        row="number",
        title=_title(settings.facts),
        labels=("round", ""),
        shared=False,
    )
