"""Made-up rows of a grid, as a real bench would write them."""

import math
from typing import Any

from fedsim.results.rows import Row

ERROR = {"type": "ValueError", "message": "rows hold NaN", "traceback": "Traceback (most recent call last):\nValueError"}


def make_row(**fields: Any) -> Row:
    """One row; everything has a default."""
    epsilon = fields.get("epsilon_target", 1.0)
    base = {
        "cell_id": "a",
        "status": "ok",
        "algorithm": fields.get("label", "fedhypevae"),
        "label": "fedhypevae",
        "params": {"rounds": 40},
        "dataset": "digits",
        "dataset_hash": "abcd",
        "scheme": "dirichlet",
        "alpha": 0.1,
        "clients": 10,
        "partition_hash": "ef01",
        "seed": 0,
        "epsilon_target": epsilon,
        "epsilon_spent": None if epsilon is None else epsilon * 0.995,
        "delta": 1e-4,
        "unit": "example",
        "trust": "aggregate",
        "scope": "joint",
        "claim": "none" if epsilon is None or math.isinf(epsilon) else "proved",
        "accountant": None if epsilon is None else "prv",
        "sigma": None if epsilon is None else 4.2 / epsilon,
        "sample_rate": None if epsilon is None else 0.08,
        "steps": 400,
        "clip": 1.0,
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.5,
        "ceiling_balanced_accuracy": 0.953,
        "local_only_balanced_accuracy": 0.38,
        "chance": 0.1,
        "uplink_bytes": 12_345_678,
        "seconds": 4.2,
        "versions": {"fedsim": "0.1.0"},
    }
    return Row.model_validate(base | fields)


def make_failed(**fields: Any) -> Row:
    """One failed row."""
    none = dict.fromkeys(["accuracy", "balanced_accuracy", "macro_f1", "epsilon_spent", "scope", "claim"])
    return make_row(**none | {"status": "failed", "error": ERROR} | fields)
