"""Rows of a made-up quickstart grid, as a real bench would write them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rows import make_failed, make_row

from fedsim.results.columns import Row

LEVELS = {
    "fedhypevae": {1.0: 0.62, 4.0: 0.83, math.inf: 0.92},
    "weight-noise": {1.0: 0.13, 4.0: 0.27, math.inf: 0.88},
    "fedavg-cvae": {None: 0.90},
}


def make_rounds(cell_id: str, rounds: int = 8, start: int = 0, **values: Any) -> list[dict[str, Any]]:
    """The round records of a sound training; a value may be a list, one element a round."""
    sound = {
        "signal_norm": 100.0,
        "noise_norm": 200.0,
        "loss_reconstruction": -0.9,
        "loss_kl": 0.01,
        "loss_kernel": -0.02,
        "loss_lipschitz": 1e-4,
        "kl": 2.0,
        "gradient_norm_quantiles": (0.5, 1.0, 1.5, 2.0, 2.5),
        "clipped_fraction": 0.8,
        "generated_decoder_norm": 8.0,
        "generated_prior_norm": 1.0,
        "parameter_norm": 7.7,
        "cross_client_mmd": 0.02,
    } | values
    return [
        {"cell_id": cell_id, "round": start + t, "release": "dp-sgd"}
        | {
            name: value[t] if isinstance(value, list) else list(value) if isinstance(value, tuple) else value
            for name, value in sound.items()
        }
        for t in range(rounds)
    ]


@pytest.fixture(scope="session")
def training() -> Callable[..., list[dict[str, Any]]]:
    return make_rounds


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    return make_row


@pytest.fixture(scope="session")
def failed() -> Callable[..., Row]:
    return make_failed


@pytest.fixture(scope="session")
def quickstart() -> list[Row]:
    """3 algorithms x alpha 0.1 and 1.0 x epsilon 1, 4, inf x 3 seeds; the last algorithm is not private."""
    rng = np.random.default_rng(0)
    settings = [
        (label, alpha, epsilon, seed) for alpha in (0.1, 1.0) for seed in range(3) for label, levels in LEVELS.items() for epsilon in levels
    ]
    rows = []
    for position, (label, alpha, epsilon, seed) in enumerate(settings):
        level = LEVELS[label][epsilon] - (0.06 if alpha < 0.5 else 0.0) + 0.015 * rng.normal()
        scores = {"accuracy": level + 0.004, "balanced_accuracy": level, "macro_f1": level - 0.006}
        local = 0.38 if alpha < 0.5 else 0.71
        setting = {"label": label, "alpha": alpha, "epsilon_target": epsilon, "seed": seed}
        rows.append(make_row(cell_id=f"{position:012x}", local_only_balanced_accuracy=local, **setting, **scores))
    return rows
