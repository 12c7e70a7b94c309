"""Rows of a made-up quickstart grid, as a real bench would write them."""

import math
from typing import Any

import numpy as np
import pytest
from rows import make_row

from fedsim.results.columns import Row

LEVELS = {
    "fedhypevae": {1.0: 0.62, 4.0: 0.83, math.inf: 0.92},
    "weight-noise": {1.0: 0.13, 4.0: 0.27, math.inf: 0.88},
    "fedavg-cvae": {None: 0.90},
}


@pytest.fixture(scope="session")
def quickstart() -> list[Row]:
    """3 algorithms x alpha 0.1 and 1.0 x epsilon 1, 4, inf x 3 seeds; the last algorithm is not
    private.
    """
    rng = np.random.default_rng(0)
    rows = list[Row]()
    for alpha, local in ((0.1, 0.38), (1.0, 0.71)):
        for seed in range(3):
            for label, epsilon in (
                (label, epsilon) for label, levels in LEVELS.items() for epsilon in levels
            ):
                level = (
                    LEVELS[label][epsilon] - (0.06 if alpha < 0.5 else 0.0) + 0.015 * rng.normal()
                )
                place: dict[str, Any] = {
                    "label": label,
                    "alpha": alpha,
                    "epsilon_target": epsilon,
                    "seed": seed,
                }
                scores = {
                    "accuracy": level + 0.004,
                    "balanced_accuracy": level,
                    "local_only_balanced_accuracy": local,
                }
                rows.append(make_row(cell_id=f"{len(rows):012x}", **place, **scores))
    return rows
