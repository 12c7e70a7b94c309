"""Digits are told apart from what methods yield, without noise and under it."""

import math
from typing import Any

import pytest
from cells import small_cells
from rows import ran

LEAST: list[tuple[str, dict[str, Any], float, float]] = [
    ("dp-least-squares", {}, math.inf, 0.85),
    ("dp-least-squares", {}, 8.0, 0.5),
    ("dp-feature-covariance", {}, math.inf, 0.9),
    ("dp-feature-covariance", {}, 8.0, 0.8),
    ("dp-prototypes", {}, math.inf, 0.8),
    ("dp-prototypes", {}, 4.0, 0.6),
    *(("dp-lda", {"head": head}, 8.0, 0.6) for head in ("naive-bayes", "lda", "qda", "ridge")),
    ("dp-linear", {}, math.inf, 0.85),
    ("dp-linear", {"reencoded": 0.3}, math.inf, 0.7),
    ("private-evolution", {"start": "drawn", "candidates": 200, "votes": 10}, math.inf, 0.5),
    ("fedpft", {}, math.inf, 0.8),
    ("dp-fedpft", {}, math.inf, 0.8),
    ("fedavg-linear", {"rounds": 15}, math.inf, 0.6),
    ("dp-fedavg-linear", {"rounds": 15, "local_steps": 10}, math.inf, 0.6),
]


@pytest.mark.parametrize(("name", "params", "epsilon", "least"), LEAST)
def test_digits_are_told_apart(
    name: str, params: dict[str, Any], epsilon: float, least: float
) -> None:
    prepared = small_cells(
        {"name": name, "params": params}, epsilon=epsilon, dataset={"name": "digits", "limit": 1000}
    )
    (trial,) = prepared.trials
    assert ran(prepared, trial)[1].scores.balanced_accuracy > least
