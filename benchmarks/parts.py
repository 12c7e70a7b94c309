"""How much accuracy each part of `fedhypevae-warm` gains, by three evaluators.

    python benchmarks/parts.py --data FOLDER --sets NAME ... [--epsilons 1 4 8] [--seeds 0 1]
        [--json FILE]

`--data` is the folder with the embeddings, one file `NAME.npz` for each set. The script trains
`fedhypevae-warm` as it is, and once more without each of its parts, with every set, ε and seed.
Every training is evaluated by the balanced accuracy of a linear probe, of a small network and of
the nearest neighbours. The gain of a part is the accuracy of the whole method minus the accuracy
without the part. The script prints the mean gain of every part over sets, ε and seeds.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
"""The scores of the linear probe, the small network and the nearest neighbours."""


@dataclass(frozen=True)
class Change:
    """A change of `fedhypevae-warm` that switches one of its parts off.

    Attributes:
        params: new values of parameters of the method.
        warm: new values of constants of :class:`algorithms.fedhypevae_warm.TunedWarm`.
        block: new values of constants of :class:`algorithms.class_block.TunedBlock`.
        shares: the new share of each release in the budget; None leaves the shares as they are.
    """

    params: Mapping[str, Any] = field(default_factory=dict)
    warm: Mapping[str, Any] = field(default_factory=dict)
    block: Mapping[str, Any] = field(default_factory=dict)
    shares: Mapping[str, float] | None = None


WHOLE = ""
"""The name of the change that changes nothing."""
CHANGES = {
    WHOLE: Change(),
    "pairs": Change(params={"paired": False}),
    "a block beyond class means": Change(params={"block": 1}),
    "the eigenvalue floor": Change(warm={"floor": 0.0}),
    "emphasis of few examples": Change(warm={"most_excess": 1.0}),
    # Class means get almost no budget, and the moments get what the class means had.
    "class means first": Change(
        shares={
            "coordinates": 0.12,
            "class means": 5e-4,
            "moments": 0.7895,
            "class moments": 0.09,
        }
    ),
    "overlap of 1.8 (compared with 0.9)": Change(block={"overlap": 0.9}),
}
"""The change that switches a part off, by the name of the part."""


@contextmanager
def change_applied(change: Change) -> Iterator[None]:
    """Apply a change to the method for the body of a ``with`` statement, then undo it.

    The parameters of the change are not applied here, because they are part of the grid.
    """
    method = fedhypevae_warm.FedHypeVAEWarm
    warm = fedhypevae_warm.TUNED
    block = class_block.TUNED
    shares = method.shares
    fedhypevae_warm.TUNED = replace(warm, **change.warm)
    class_block.TUNED = replace(block, **change.block)
    if change.shares is not None:
        method.shares = change.shares
    try:
        yield
    finally:
        fedhypevae_warm.TUNED = warm
        class_block.TUNED = block
        method.shares = shares


def scores_of(path: Path, epsilon: float, seed: int, change: Change) -> dict[str, float]:
    """Train and evaluate the changed method, and return the scores named in :data:`EVALUATORS`.

    Args:
        path: the file with the embeddings.
        epsilon: the ε of the training.
        seed: the seed of the training.
        change: the change of the method.
    """
    grid = {
        "dataset": {"npz": str(path), "overlap": "drop"},
        "algorithms": [{"name": "fedhypevae-warm", "params": change.params}],
        "epsilon": epsilon,
        "seeds": seed,
        "evaluation": {"evaluators": ["knn", "mlp"]},
    }
    with change_applied(change):
        # The grid is planned for a machine with 2 CPUs and no GPU.
        prepared = prepare(Grid.model_validate(grid), [Node(2.0, 0.0)])
        (trial,) = prepared.trials
        (data,) = prepared.data.values()
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        scores = cell_evaluator(trial, outcome.state, data).result().scores
    return {evaluator: scores[evaluator] for evaluator in EVALUATORS}


def measure(
    data: Path, sets: Sequence[str], epsilons: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Train and evaluate the method without each part, and return one record for each training.

    Args:
        data: the folder with the embeddings.
        sets: the names of the sets.
        epsilons: the values of ε.
        seeds: the seeds.

    Returns:
        Records with ``set``, ``epsilon``, ``seed``, the name of the missing part (``without``), and
        the score of each evaluator.
    """
    records = []
    for name, epsilon, seed, part in product(sets, epsilons, seeds, CHANGES):
        scores = scores_of(data / f"{name}.npz", epsilon, seed, CHANGES[part])
        record = {"set": name, "epsilon": epsilon, "seed": seed, "without": part}
        records.append(record | scores)
    return records


def mean_gains(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the mean gain of each part over sets, ε and seeds.

    Args:
        records: the records of :func:`measure`.

    Returns:
        By part, one mean for each evaluator, in the order of :data:`EVALUATORS`.
    """
    whole_records = {}
    for record in records:
        if record["without"] == WHOLE:
            whole_records[record["set"], record["epsilon"], record["seed"]] = record
    gains: dict[str, dict[str, list[float]]] = {}
    for record in records:
        whole_record = whole_records[record["set"], record["epsilon"], record["seed"]]
        gains_of_part = gains.setdefault(record["without"], {})
        for evaluator in EVALUATORS:
            gain = whole_record[evaluator] - record[evaluator]
            gains_of_part.setdefault(evaluator, []).append(gain)
    means = {}
    for part, gains_of_part in gains.items():
        means[part] = [fmean(gains_of_part[evaluator]) for evaluator in EVALUATORS]
    return means


def show(gains: Mapping[str, Sequence[float]]) -> None:
    """Print the mean gain of each part by evaluator, and the mean over the evaluators."""
    table = Table("part", "probe", "network", "neighbours", "mean", title="what a part gains")
    for part, by_evaluator in gains.items():
        values = [*by_evaluator, fmean(by_evaluator)]
        table.add_row(part or "nothing", *[f"{value:+.4f}" for value in values])
    Console().print(table)


def main() -> None:
    """Train and evaluate, print the gain of each part and write every score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the embeddings")
    parser.add_argument("--sets", nargs="+", required=True, help="names of files without .npz")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1, 4, 8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--json", type=Path, help="where every score is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    records = measure(options.data, options.sets, options.epsilons, options.seeds)
    show(mean_gains(records))
    if options.json:
        options.json.write_text(json.dumps(records, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
