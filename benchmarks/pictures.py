"""Draw the pictures of README and of the pages on the paper's setting from ``paper.json``.

    python benchmarks/pictures.py

Every picture shows results on DINOv2-small embeddings that are divided among 10 clients. README's
picture has two panels. The left one makes the comparison of the FedHypeVAE paper, and the right one
compares FedHypeVAE with four other methods. The other pictures show the methods of the main tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from fill_pages import frame_of, mean_and_half

from fedsim.evaluation.measures import MEASURES
from fedsim.report.panels import (
    Look,
    epsilon_axis,
    facet,
    looks,
    reference_look,
    save_figure,
    side_by_side,
)

ROOT = Path(__file__).resolve().parents[1]
MEASURE = "balanced_accuracy"
Panels = Mapping[str, Sequence[tuple[str, str]]]
"""The lines of every panel, by its title: the run and the label in ``paper.json``."""
README_PANELS: Panels = {
    "The paper's comparison": (
        ("organamnist", "fedhypevae"),
        ("organamnist-baselines", "fedavg-cvae"),
        ("organamnist-baselines", "weight-noise"),
    ),
    "FedHypeVAE and four other methods": (
        ("organamnist", "fedhypevae"),
        ("organamnist", "fedhypevae-warm"),
        ("organamnist", "dp-gaussian"),
        ("organamnist", "dp-lda"),
        ("organamnist", "dp-feature-covariance"),
    ),
}
MAIN_METHODS = (
    "fedhypevae-warm",
    "fedhypevae",
    "dp-gaussian",
    "dp-gmm",
    "private-evolution",
    "dp-lda",
    "dp-linear",
    "dp-feature-covariance",
)
CLASSIFIERS = ("dp-lda", "dp-linear", "dp-feature-covariance")
DATASETS = {"organamnist": "OrganAMNIST", "milk10k": "MILK10k"}
REFERENCES = {"ceiling": "ceiling_balanced_accuracy", "local-only": "local_only_balanced_accuracy"}


def points_of(
    records: pd.DataFrame, panel: str, lines_of_panel: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """Return one point per method and ε of a panel.

    Args:
        records: the results in ``paper.json``, one per row.
        panel: the title of the panel.
        lines_of_panel: the run and the label of each line.

    Returns:
        A frame with the mean over seeds (``mean``) and its 95 % confidence interval (``low`` and
        ``high``). ``epsilon_target`` is NaN for a method that is not private.
    """
    results_of_lines = [
        records[(records["run"] == run) & (records["label"] == label)]
        for run, label in lines_of_panel
    ]
    points = []
    for (label, epsilon), group in pd.concat(results_of_lines).groupby(
        ["label", "epsilon_target"], sort=False, dropna=False
    ):
        mean, half_width = mean_and_half(group[MEASURE])
        point = {"label": label, "epsilon_target": epsilon, "panel": panel, "mean": mean}
        points.append({**point, "low": mean - half_width, "high": mean + half_width})
    return pd.DataFrame(points)


def levels_of(records: pd.DataFrame, dataset: str, panels: Panels) -> pd.DataFrame:
    """Return the level of each reference for each panel.

    A reference has no ε. So its position on the x axis, ``at``, is NaN, and :func:`facet` draws it
    as a level across the panel.
    """
    results = records[records["run"] == dataset]
    levels = [
        {"label": name, "panel": panel, "mean": results[column].mean(), "at": np.nan}
        for name, column in REFERENCES.items()
        for panel in panels
    ]
    return pd.DataFrame(levels)


def looks_of(points: pd.DataFrame) -> dict[str, Look]:
    """Return the look of every line and reference, as the report draws it."""
    points_with_claims = points.assign(
        claim=np.where(points["epsilon_target"].isna(), "none", "proved"),
        claim_refuted=False,
        public=None,
        yields=np.where(points["label"].isin(CLASSIFIERS), "classifier", "generator"),
    )
    return looks(points_with_claims) | {name: reference_look(name, name) for name in REFERENCES}


def draw(dataset: str, panels: Panels, target: Path) -> None:
    """Draw a picture of one data set.

    Args:
        dataset: a key of :data:`DATASETS`.
        panels: the lines of every panel.
        target: the file of the picture.
    """
    records = frame_of("paper")
    points = pd.concat(
        [points_of(records, panel, lines) for panel, lines in panels.items()], ignore_index=True
    )
    position_of_epsilon, ticks = epsilon_axis(points["epsilon_target"])
    points["at"] = points["epsilon_target"].map(position_of_epsilon)
    # Methods at the same ε are shifted, so that their points do not overlap.
    points["at"] = side_by_side(points, ticks)
    frame = pd.concat([points, levels_of(records, dataset, panels)], ignore_index=True)
    figure = facet(
        frame,
        ("at", "mean", "panel", "label"),
        looks_of(points),
        title=(
            f"{DATASETS[dataset]}, DINOv2-small embeddings · Dirichlet α = 0.3 · 10 clients · "
            "δ = 1e-4"
        ),
        labels=("privacy budget ε (smaller is more private)", MEASURES[MEASURE].title),
        ticks=ticks,
        shared=False,
    )
    save_figure(figure, target)


def main() -> None:
    """Draw all pictures."""
    draw("organamnist", README_PANELS, ROOT / "docs/privacy_utility.png")
    for dataset in DATASETS:
        panels = {"The methods of the main tables": [(dataset, name) for name in MAIN_METHODS]}
        draw(dataset, panels, ROOT / f"benchmarks/results/paper_{dataset}.png")


if __name__ == "__main__":
    main()
