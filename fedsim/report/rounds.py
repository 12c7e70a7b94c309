"""Diagnostics of the rounds: losses, norms, clipping, noise and agreement of clients; from real
data without noise, so not private.
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
_MOST_METHODS = 6
_POINTS = 100
"""Methods that are drawn, and points of a line: more than a panel has pixels to show apart."""
_TITLES = {
    "kl": "KL, nats an example",
    "gradient_norm_50": "norm before clipping",
    "clipped_fraction": "clipped fraction",
    "noise_to_signal": "noise norm / signal norm",
    "generated_decoder_norm": "generated norm, decoder",
    "generated_prior_norm": "generated norm, prior",
    "cross_client_mmd": "cross-client MMD²",
}
"""What is drawn beside every loss."""


def round_frame(settings: SeedGroups, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The round records of some settings' cells, whatever their status, as numbers.

    Rounds that are not the training itself are left out: a warm start's messages are no gradients
    and have no loss.

    Returns:
        A line a cell and round, in their order: ``cell_id``, ``round``, ``setting``, the numbers
            that are drawn and every loss, ``lost``:
        which losses are not finite, in words, ``kl_lost``: whether the KL is not, and ``left``: the
        share of the rounds still to come.
    """
    kept = [record for record in records if record.get("main", True)]
    losses = list(
        dict.fromkeys(name for record in kept for name in record if name.startswith("loss_"))
    )
    numbers = [
        *losses,
        "signal_norm",
        "noise_norm",
        *(name for name in _TITLES if name != "noise_to_signal"),
    ]
    quantiles = ((record.get("gradient_norm_quantiles") or ()) for record in kept)
    medians = [of[len(of) // 2] if of else None for of in quantiles]
    flat = [
        {**record, "gradient_norm_50": median} for record, median in zip(kept, medians, strict=True)
    ]
    frame = pd.DataFrame(flat, columns=["cell_id", "round", *numbers]).astype(
        dict.fromkeys(numbers, "float64")
    )
    given = [
        [name for name in [*losses, "kl"] if isinstance(record.get(name), float)] for record in kept
    ]
    lost = [
        [name for name in names if not math.isfinite(record[name])]
        for names, record in zip(given, kept, strict=True)
    ]
    frame["lost"] = [" and ".join(_plain(name) for name in names if name != "kl") for names in lost]
    frame["kl_lost"] = ["kl" in names for names in lost]
    frame["setting"] = frame["cell_id"].map(
        dict(zip(settings.rows["cell_id"], settings.rows["setting"], strict=True))
    )
    frame = frame.dropna(subset="setting").astype(
        {"setting": "int64", "cell_id": "object", "lost": "object", "kl_lost": "bool"}
    )
    frame["noise_to_signal"] = frame["noise_norm"] / frame["signal_norm"]
    count = frame.groupby("cell_id", sort=False)["round"]
    return frame.assign(left=1 - (count.cumcount() + 1) / count.transform("size"))


def _plain(name: str) -> str:
    return name.removeprefix("loss_").replace("_", " ")


def diagnostics(settings: SeedGroups, rounds: pd.DataFrame) -> Figure | None:
    """A line of panels a number over the rounds, a panel a method, a line an epsilon; None where
    there is nothing to draw.

    Lines are means over seeds and places; what is not finite is left out, and so are methods but
    the first few.
    """
    shown = {
        name: f"loss: {_plain(name)}" for name in rounds.columns if name.startswith("loss_")
    } | _TITLES
    kept = rounds.merge(
        settings.facts[[*PLACE, "label", "epsilon_target"]], left_on="setting", right_index=True
    )
    kept = kept[kept["label"].isin(list(dict.fromkeys(kept["label"]))[:_MOST_METHODS])]
    if not len(kept):
        return None
    width = math.ceil((kept["round"].max() + 1) / _POINTS)
    numbers = kept[list(shown)].where(kept[list(shown)].abs() < math.inf)
    by = [kept["label"], kept["epsilon_target"], kept["round"] // width * width]
    means = (
        numbers.groupby(by, dropna=False, sort=False)
        .mean()
        .rename_axis(["label", "epsilon_target", "x"])
        .reset_index()
    )
    points = means.melt(["label", "epsilon_target", "x"], var_name="what", value_name="y").dropna(
        subset="y"
    )
    points = points[points.groupby(["label", "what"])["x"].transform("nunique") > 1]
    if not len(points):
        return None
    points = points.assign(
        budget=points["epsilon_target"].map(epsilon_head), what=points["what"].map(shown)
    )
    look = shades(points["epsilon_target"])
    return facet(
        points, ("x", "y", "label", "budget"), look, row="what", labels=("round", ""), shared=False
    )
