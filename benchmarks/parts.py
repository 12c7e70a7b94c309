"""The warm form without one of its parts at a time, by three evaluators.

A part gains what the mean over sets, budgets and seeds of linear probe, small network and nearest
neighbours loses without it. `--data` holds the `.npz` files of embeddings.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

from algorithms import class_block, fedhypevae_warm
from fedsim.evaluation.evaluate import cell_evaluator
from fedsim.grid.models import Grid
from fedsim.runs.prepare import Node, prepare
from fedsim.training.trial import Outcome, run_trial

EVALUATORS = ("balanced_accuracy", "mlp_balanced_accuracy", "knn_balanced_accuracy")
WITHOUT: dict[str, dict[str, Any]] = {
    "": {},
    "pairs": {"params": {"paired": False}},
    "a block beyond class means": {"params": {"block": 1}},
    "the eigenvalue floor": {"warm": {"floor": 0.0}},
    "emphasis of few examples": {"warm": {"most_excess": 1.0}},
    "class means first": {
        "shares": {
            "coordinates": 0.12,
            "class means": 5e-4,
            "moments": 0.7895,
            "class moments": 0.09,
        }
    },
    "overlap of 1.8 (compared with 0.9)": {"block": {"overlap": 0.9}},
}
"""What changes: parameters, constants of the warm form, shares of the budget, constants of the
block.
"""


@contextmanager
def without(part: str) -> Iterator[dict[str, Any]]:
    """The parameters without a part, whose constants are changed in the block."""
    warm = fedhypevae_warm.TUNED
    block = class_block.TUNED
    shares = fedhypevae_warm.FedHypeVAEWarm.shares
    changed = WITHOUT[part]
    fedhypevae_warm.TUNED = replace(warm, **changed.get("warm", {}))
    class_block.TUNED = replace(block, **changed.get("block", {}))
    fedhypevae_warm.FedHypeVAEWarm.shares = changed.get("shares", shares)
    try:
        yield changed.get("params", {})
    finally:
        fedhypevae_warm.TUNED = warm
        class_block.TUNED = block
        fedhypevae_warm.FedHypeVAEWarm.shares = shares


def measured(path: Path, epsilon: float, seed: int, part: str) -> dict[str, Any]:
    """One training's scores."""
    with without(part) as params:
        entry = {"name": "fedhypevae-warm", "params": params}
        keys = {
            "algorithms": [entry],
            "epsilon": epsilon,
            "seeds": seed,
            "evaluation": {"evaluators": ["knn", "mlp"]},
        }
        prepared = prepare(
            Grid.model_validate({"dataset": {"npz": str(path), "overlap": "drop"}, **keys}),
            [Node(2.0, 0.0)],
        )
        (trial,), (data,) = prepared.trials, prepared.data.values()
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        scores = cell_evaluator(trial, outcome.state, data).result().scores
    return {
        "set": path.stem,
        "epsilon": epsilon,
        "seed": seed,
        "without": part,
        **{name: scores[name] for name in EVALUATORS},
    }


def main() -> None:
    """Train, evaluate, print what each part gains, write every score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    cells = product(given.sets, given.epsilons, given.seeds, WITHOUT)
    rows = [
        measured(given.data / f"{name}.npz", epsilon, seed, part)
        for name, epsilon, seed, part in cells
    ]
    whole = {(row["set"], row["epsilon"], row["seed"]): row for row in rows if not row["without"]}
    gains = defaultdict[str, list[list[float]]](list)
    for row in rows:
        gains[row["without"]].append(
            [
                whole[row["set"], row["epsilon"], row["seed"]][name] - row[name]
                for name in EVALUATORS
            ]
        )
    table = Table("part", "probe", "network", "neighbours", "mean", title="what a part gains")
    for part, differences in gains.items():
        means = [fmean(column) for column in zip(*differences, strict=True)]
        table.add_row(part or "nothing", *(f"{value:+.4f}" for value in (*means, fmean(means))))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
