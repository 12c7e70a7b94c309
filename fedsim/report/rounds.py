"""The diagnostics of the rounds: losses, norms, clipping, noise and how clients agree.

They are computed from the real data without noise, so they are not private and not for release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from fedsim.report.figures import facet, shades
from fedsim.report.tables import epsilon_head
from fedsim.results.stats import PLACE, SeedGroups

NOT_PRIVATE = (
    "computed from the real data without noise: diagnostics, not private, not to be released"
)
"""The warning beside the diagnostics."""
_MOST_METHODS = 6
"""The largest number of methods in the figure."""
_POINTS = 100
"""The largest number of points of a line; a panel has too few pixels to tell more apart."""
_TITLES = {
    "kl": "KL, nats an example",
    "gradient_norm_50": "norm before clipping",
    "clipped_fraction": "clipped fraction",
    "noise_to_signal": "noise norm / signal norm",
    "generated_decoder_norm": "generated norm, decoder",
    "generated_prior_norm": "generated norm, prior",
    "cross_client_mmd": "cross-client MMD²",
}
"""The numbers that are drawn beside every loss, with the labels of their axes."""


def round_frame(settings: SeedGroups, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the records of the rounds of some cells as numbers.

    Rounds that are not the training itself are left out: the messages of a warm start are no
    gradients and have no loss.

    Args:
        settings: The results; records of cells that are not in them are left out.
        records: The lines of ``rounds.jsonl``, in their order.

    Returns:
        One line per cell and round, in their order: ``cell_id``, ``round``, ``setting``, every
        loss, the numbers that are drawn, ``lost`` (which losses are not finite, in words),
        ``kl_lost`` (whether the KL is not finite), and ``left`` (the share of the rounds that are
        still to come).
    """
    records = [record for record in records if record.get("main", True)]
    names = dict.fromkeys(name for record in records for name in record)
    losses = [name for name in names if name.startswith("loss_")]
    numbers = [*losses, "signal_norm", "noise_norm", *_TITLES]
    numbers.remove("noise_to_signal")
    lines = [
        {
            **record,
            "gradient_norm_50": _median_norm(record),
            "lost": " and ".join(_loss_words(name) for name in losses if _is_lost(record, name)),
            "kl_lost": _is_lost(record, "kl"),
        }
        for record in records
    ]
    frame = pd.DataFrame(lines, columns=["cell_id", "round", *numbers, "lost", "kl_lost"])
    cells = settings.rows.set_index("cell_id")
    frame["setting"] = frame["cell_id"].map(cells["setting"].to_dict())
    types = {"setting": "int64", "cell_id": "object", "lost": "object", "kl_lost": "bool"}
    frame = frame.dropna(subset="setting").astype(dict.fromkeys(numbers, "float64") | types)
    frame["noise_to_signal"] = frame["noise_norm"] / frame["signal_norm"]
    by_cell = frame.groupby("cell_id", sort=False)["round"]
    return frame.assign(left=1 - (by_cell.cumcount() + 1) / by_cell.transform("size"))


def _median_norm(record: Mapping[str, Any]) -> float | None:
    """Return the median norm before clipping in a round; None if the method does not record it."""
    quantiles = record.get("gradient_norm_quantiles")
    if not quantiles:
        return None
    median: float = quantiles[len(quantiles) // 2]
    return median


def _is_lost(record: Mapping[str, Any], name: str) -> bool:
    """Return whether a record has a number that is not finite."""
    value = record.get(name)
    return isinstance(value, float) and not math.isfinite(value)


def _loss_words(name: str) -> str:
    """Return the name of a loss in words."""
    return name.removeprefix("loss_").replace("_", " ")


def diagnostics(settings: SeedGroups, rounds: pd.DataFrame) -> Figure | None:
    """Return the diagnostics over the rounds: a row of panels per number, a panel per method.

    Lines are means over seeds and places, one per epsilon. Values that are not finite are left
    out, and so are all methods after the first six.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`round_frame`.

    Returns:
        The figure, or None if no method has two rounds to draw.
    """
    losses = [name for name in rounds.columns if name.startswith("loss_")]
    titles = {name: f"loss: {_loss_words(name)}" for name in losses} | _TITLES
    facts = settings.facts[[*PLACE, "label", "epsilon_target"]]
    drawn = rounds.merge(facts, left_on="setting", right_index=True)
    drawn = drawn[drawn["label"].isin(drawn["label"].unique()[:_MOST_METHODS])]
    if drawn.empty:
        return None
    # Neighbouring rounds are averaged, so that a line has at most _POINTS points.
    width = math.ceil((drawn["round"].max() + 1) / _POINTS)
    drawn = drawn.assign(x=drawn["round"] // width * width)
    keys = ["label", "epsilon_target", "x"]
    numbers = drawn[list(titles)].where(drawn[list(titles)].abs() < math.inf)
    by_point = numbers.groupby([drawn[key] for key in keys], dropna=False, sort=False)
    points = by_point.mean().reset_index().melt(keys, var_name="number", value_name="y")
    points = points.dropna(subset="y")
    points = points[points.groupby(["label", "number"])["x"].transform("nunique") > 1]
    if points.empty:
        return None
    points = points.assign(
        budget=points["epsilon_target"].map(epsilon_head), number=points["number"].map(titles)
    )
    return facet(
        points,
        ("x", "y", "label", "budget"),
        shades(points["epsilon_target"]),
        row="number",
        labels=("round", ""),
        shared=False,
    )
