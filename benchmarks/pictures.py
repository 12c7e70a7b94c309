"""Draw the pictures of README and of the pages on the paper's setting from ``paper.json``.

    python benchmarks/pictures.py

All show DINOv2-small embeddings of 10 clients. The left panel of README's picture has the
comparison that the paper makes, the right one four other methods. The other pictures have the
methods of the main tables.
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
"""The run and the label of each line, by the title of the panel."""
README_PANELS: Panels = {
    "The paper's comparison": (
        ("organamnist", "fedhypevae"),
        ("organamnist-forms", "fedavg-cvae"),
        ("organamnist-forms", "weight-noise"),
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
    """Return one point per method and epsilon of a panel, with its 95 % confidence interval."""
    chosen = [
        records[(records["run"] == run) & (records["label"] == label)]
        for run, label in lines_of_panel
    ]
    lines = []
    for (label, epsilon), group in pd.concat(chosen).groupby(
        ["label", "epsilon_target"], sort=False, dropna=False
    ):
        mean, half = mean_and_half(group[MEASURE])
        point = {"label": label, "epsilon_target": epsilon, "panel": panel, "mean": mean}
        lines.append({**point, "low": mean - half, "high": mean + half})
    return pd.DataFrame(lines)


def levels_of(records: pd.DataFrame, dataset: str, panels: Panels) -> pd.DataFrame:
    """Return a level of each reference for each panel."""
    of_run = records[records["run"] == dataset]
    levels = [
        {"label": name, "panel": panel, "mean": of_run[column].mean(), "at": np.nan}
        for name, column in REFERENCES.items()
        for panel in panels
    ]
    return pd.DataFrame(levels)


def looks_of(points: pd.DataFrame) -> dict[str, Look]:
    """Return the look of every line, as the report draws it."""
    facts = points.assign(
        claim=np.where(points["epsilon_target"].isna(), "none", "proved"),
        refuted=False,
        public=None,
        yields=np.where(points["label"].isin(CLASSIFIERS), "classifier", "generator"),
    )
    return looks(facts) | {name: reference_look(name, name) for name in REFERENCES}


def draw(dataset: str, panels: Panels, target: Path) -> None:
    """Draw the panels of one data set into the file ``target``."""
    records = frame_of("paper")
    points = pd.concat(
        [points_of(records, panel, lines) for panel, lines in panels.items()], ignore_index=True
    )
    places, ticks = epsilon_axis(points["epsilon_target"])
    points["at"] = points["epsilon_target"].map(places)
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
