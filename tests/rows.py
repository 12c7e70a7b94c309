"""Made-up rows of a grid, as a real bench would write them."""

import math
from typing import Any

from fedsim.results.rows import Row

ERROR = {"type": "ValueError", "message": "rows hold NaN", "traceback": "Traceback (most recent call last):\nValueError"}


def make_row(**fields: Any) -> Row:
    """One row; everything has a default."""
    epsilon = fields.get("epsilon_target", 1.0)
    private = epsilon is not None
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
        "epsilon_spent": epsilon * 0.995 if private else None,
        "delta": 1e-4 if private else None,
        "unit": "example" if private else None,
        "trust": "aggregate" if private else None,
        "scope": "joint" if private else None,
        "claim": "proved" if private and math.isfinite(epsilon) else "none",
        "accountant": "prv" if private else None,
        "sigma": 4.2 / epsilon if private else None,
        "sample_rate": 0.08 if private else None,
        "steps": 400 if private else None,
        "clip": 1.0 if private else None,
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
    none = dict.fromkeys(["accuracy", "balanced_accuracy", "macro_f1", "epsilon_spent", "accountant", "uplink_bytes", "seconds"])
    return make_row(**none | {"status": "failed", "error": ERROR} | fields)
