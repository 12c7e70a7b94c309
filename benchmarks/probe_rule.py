"""How the evaluation's rule for its linear probe compares with a fixed probe, on real data.

    python benchmarks/probe_rule.py --data FOLDER --sets small|large --states FOLDER
        [--methods NAME ...] [--names NAME ...] [--seeds N ...] [--evaluators NAME ...]
        [--json FILE]

The rule chooses the penalty of the probe and the number of synthetic examples from the size of the
data. The fixed probe has C = 0.01 and 1,000 synthetic examples per class. The script trains every
generator once and evaluates it with both. `--sets large` uses seven files of embeddings in the
folder `--data`; `--sets small` uses three small sets that the script makes of two of these files.
On the small sets it also fits scikit-learn's logistic regression with five penalties, and records
the best of their scores.

For every set, method and ε the script prints the mean balanced accuracies over seeds, and how many
times the processor time of the fixed probe the rule takes. The folder `--states` keeps the small
sets and every trained generator, so a run that was stopped trains none of them again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import CellEvaluator, synthesise
from fedsim.grid.models import Evaluation, Grid
from fedsim.methods.messages import Tensors
from fedsim.methods.products import Product, before_shortening, is_classifier
from fedsim.runs.prepare import Node, prepare
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Outcome, Trial, run_trial

METHODS = ("dp-gaussian", "dp-gmm", "fedhypevae-warm", "fedhypevae-sites", "fedhypevae")
RULE = Evaluation()
"""The evaluation by the rule, which is the default of a grid."""
FIXED = Evaluation(per_class=1000, probe_c=0.01)
"""The evaluation by the fixed probe."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of the inverse penalty C; on small sets the best score among them is recorded."""
ORGANS = {"small3": (1, 4, 8), "small2": (1, 4)}
"""The organs of OrganAMNIST in each small set, by their labels."""
HOSPITALS = ("rosendahl", "vidir_modern")
"""The two hospitals of HAM10000 in the small set ``ham2``."""
SMALL = (*ORGANS, "ham2")
LARGE = (
    "organamnist_effnetlite0",
    "bloodmnist_effnetlite0",
    "ham10000_sites_effnetlite0",
    "organamnist_dinov2s",
    "ham10000_sites_dinov2s",
    "chestxray_dinov2s",
    "milk10k_dinov2s",
)
EPSILONS = {"small": (4, 32, float("inf")), "large": (1, 8, float("inf"))}
TRAINING = 0
"""The value of ``split`` for a training example."""
TEST = 2
"""The value of ``split`` for a test example."""


def shuffled_rows(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return at most ``count`` of the row numbers, in a random order that is always the same."""
    return np.random.default_rng(0).permutation(rows)[:count]


def small_sets(data: Path, out: Path) -> None:
    """Write the small sets: three organs, two organs, and two hospitals.

    A set of organs has at most 150 training and 150 test examples of each organ. The set of
    hospitals has at most 500 training and 500 test examples in all.

    Args:
        data: the folder with the embeddings of OrganAMNIST and HAM10000 by EfficientNet-Lite0.
        out: the folder of the new files ``small3.npz``, ``small2.npz`` and ``ham2.npz``.
    """
    with np.load(data / "organamnist_effnetlite0.npz") as organs:
        x = organs["x"].astype(np.float32)
        y = organs["y"]
        split = organs["split"]
    for name, labels in ORGANS.items():
        rows = rows_of_organs(y, split, labels)
        new_labels = np.searchsorted(labels, y[rows])
        np.savez(out / f"{name}.npz", x=x[rows], y=new_labels, split=split[rows])
    with np.load(data / "ham10000_sites_effnetlite0.npz") as lesions:
        x = lesions["x"].astype(np.float32)
        y = lesions["y"]
        split = lesions["split"]
        site = lesions["site"]
    rows = rows_of_hospitals(site, split)
    np.savez(out / "ham2.npz", x=x[rows], y=y[rows], split=split[rows], site=site[rows])


def rows_of_organs(y: NDArray[Any], split: NDArray[Any], labels: Sequence[int]) -> NDArray[Any]:
    """Return the row numbers of a set of organs.

    Args:
        y: all labels, ``[n]``.
        split: :data:`TRAINING` or :data:`TEST` for every example, ``[n]``; other values are left
            out.
        labels: the labels of the organs.
    """
    chosen_rows = []
    for label in labels:
        for split_value in (TRAINING, TEST):
            rows = np.flatnonzero((y == label) & (split == split_value))
            chosen_rows.append(shuffled_rows(rows, 150))
    return np.concatenate(chosen_rows)


def rows_of_hospitals(site: NDArray[Any], split: NDArray[Any]) -> NDArray[Any]:
    """Return the row numbers of the set of hospitals.

    Args:
        site: the hospital of every example, ``[n]``.
        split: :data:`TRAINING` or :data:`TEST` for every example, ``[n]``; other values are left
            out.
    """
    is_of_hospitals = np.isin(site, HOSPITALS)
    chosen_rows = []
    for split_value in (TRAINING, TEST):
        rows = np.flatnonzero(is_of_hospitals & (split == split_value))
        chosen_rows.append(shuffled_rows(rows, 500))
    return np.concatenate(chosen_rows)


def grid_of(name: str, path: Path, method: str, epsilon: float, seed: int) -> Grid:
    """Return the grid of one cell.

    The two hospitals of ``ham2`` are the clients. The examples of every other small set are divided
    among 3 clients, and those of a large set among 10.

    Args:
        name: the name of the set.
        path: its file.
        method: the method.
        epsilon: ε.
        seed: the seed.
    """
    grid: dict[str, Any] = {
        "dataset": {"npz": str(path), "overlap": "drop"},
        "algorithms": [method],
        "epsilon": epsilon,
        "seeds": seed,
        "delta": 1e-4,
    }
    if name == "ham2":
        grid["partition"] = {"scheme": "column", "column": "site"}
        grid["clients"] = 2
    elif name in ORGANS:
        grid["alpha"] = 1.0
        grid["clients"] = 3
    else:
        grid["alpha"] = 0.3
        grid["clients"] = 10
    return Grid.model_validate(grid)


def evaluated(
    name: str,
    path: Path,
    method: str,
    epsilon: float,
    seed: int,
    states: Path,
    evaluators: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Evaluate a generator by both probes, after training it unless its file exists.

    Args:
        name: the name of the set.
        path: its file.
        method: the method.
        epsilon: ε.
        seed: the seed.
        states: the folder that keeps trained generators.
        evaluators: evaluators that run beside each probe; the seconds include them.

    Returns:
        A record of the cell. ``rule`` and ``fixed`` are the balanced accuracies by the rule and by
        the fixed probe. ``best`` is the balanced accuracy with the best of five penalties; None for
        a large set. ``seconds`` has the processor seconds by the rule and by the fixed probe.
    """
    # The grid is planned for a machine with 4 CPUs and no GPU.
    prepared = prepare(grid_of(name, path, method, epsilon, seed), [Node(4.0, 0.0)])
    (data,) = prepared.data.values()
    trial = prepared.trials[0].given(data)
    state = trained_state(trial, data, states / f"{name}.{method}.{epsilon}.{seed}.safetensors")
    rule, rule_seconds = probe_score(RULE, trial, state, data, evaluators)
    fixed, fixed_seconds = probe_score(FIXED, trial, state, data, evaluators)
    best = None
    if name in SMALL:
        best = best_of_five(restored_product(trial, state), data, seed)
    return {
        "set": name,
        "method": method,
        "epsilon": epsilon,
        "seed": seed,
        "rule": rule,
        "fixed": fixed,
        "best": best,
        "seconds": [rule_seconds, fixed_seconds],
    }


def trained_state(trial: Trial, data: Embeddings, path: Path) -> Tensors:
    """Return the state of a trained generator; train the generator first if it has no file.

    Args:
        trial: the cell.
        data: its data set.
        path: the file of the state.
    """
    if not path.exists():
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        save_file({name: value.contiguous() for name, value in outcome.state.items()}, path)
    return load_file(path)


def restored_product(trial: Trial, state: Tensors) -> Product:
    """Return the trained generator of a cell."""
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
    product, _ = restored(algorithm, state, trial.plan, Seeds(trial.cell.seed))
    return product


def probe_score(
    evaluation: Evaluation,
    trial: Trial,
    state: Tensors,
    data: Embeddings,
    evaluators: tuple[str, ...],
) -> tuple[float, float]:
    """Return the balanced accuracy of a probe, and the processor seconds of its evaluation.

    The rule shortens long synthetic embeddings, as every evaluation of fedsim does. The fixed probe
    does not shorten them.

    Args:
        evaluation: :data:`RULE` or :data:`FIXED`.
        trial: the cell.
        state: the state of its trained generator.
        data: its data set.
        evaluators: evaluators that run as well.
    """
    evaluation_of_cell = evaluation.model_copy(update={"evaluators": evaluators})
    cell = trial.cell.model_copy(update={"evaluation": evaluation_of_cell})
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    start = time.process_time()
    product, shares = restored(algorithm, state, trial.plan, Seeds(cell.seed))
    if evaluation is FIXED:
        product = before_shortening(product)
    evaluator = CellEvaluator(cell, data, trial.partition, product, shares)
    score = evaluator.result().scores.balanced_accuracy
    return score, time.process_time() - start


def best_of_five(product: Product, data: Embeddings, seed: int) -> float:
    """Return the best balanced accuracy of logistic regressions with five penalties.

    They are trained on the synthetic examples that the rule draws. The best one is chosen by its
    score on test examples, which a rule must not see.

    Args:
        product: the generator.
        data: the data set.
        seed: the seed.
    """
    assert not is_classifier(product)
    per_class = RULE.rows_per_class(data.dim, data.classes)
    x, y = synthesise(product, data.classes, per_class, Seeds(seed))
    mean = x.mean(axis=0)
    # The lower bound keeps features that hardly vary from being blown up.
    scale = np.maximum(x.std(axis=0), 1e-3 * x.std())
    x_train = (x - mean) / scale
    x_test = (data.x_test - mean) / scale
    scores = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=200).fit(x_train, y)
        predicted = model.predict(x_test)
        scores.append(float(balanced_accuracy_score(data.y_test, predicted)))
    return max(scores)


def mean_of(records: Sequence[dict[str, Any]], key: str) -> float:
    """Return the mean of one score over records."""
    return float(np.mean([record[key] for record in records]))


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print the mean scores and the ratio of times of one set, method and ε.

    Args:
        records: the records of :func:`evaluated`, one for each seed.
    """
    first = records[0]
    best = ""
    if first["best"] is not None:
        best = f" best {mean_of(records, 'best'):.3f}"
    rule_seconds = sum(record["seconds"][0] for record in records)
    fixed_seconds = sum(record["seconds"][1] for record in records)
    print(
        f"{first['set']} {first['method']} {first['epsilon']}: "
        f"rule {mean_of(records, 'rule'):.3f} fixed {mean_of(records, 'fixed'):.3f}{best}, "
        f"time x {rule_seconds / fixed_seconds:.2f}",
        flush=True,
    )


def write(records: Sequence[dict[str, Any]], target: Path) -> None:
    """Write the records as a JSON list, in which infinity is the text "inf"."""
    text = json.dumps(records, indent=0).replace("Infinity", '"inf"')
    target.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Train and evaluate, print the means over seeds and write every record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the embeddings")
    parser.add_argument("--sets", choices=("small", "large"), required=True)
    parser.add_argument(
        "--states", type=Path, required=True, help="the folder that keeps trained generators"
    )
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--names", nargs="*", help="some of the sets; default: all of them")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--evaluators",
        nargs="*",
        default=[],
        help="evaluators that are timed as well, such as knn and fidelity, the default of a grid",
    )
    parser.add_argument("--json", type=Path, help="where the records are written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    options.states.mkdir(exist_ok=True, parents=True)
    folder = options.data
    names: Sequence[str] = LARGE
    if options.sets == "small":
        small_sets(options.data, options.states)
        folder = options.states
        names = SMALL
    evaluators = tuple(options.evaluators)
    records = []
    for name in options.names or names:
        path = folder / f"{name}.npz"
        for method in options.methods:
            for epsilon in EPSILONS[options.sets]:
                records_of_seeds = []
                for seed in options.seeds:
                    record = evaluated(
                        name, path, method, epsilon, seed, options.states, evaluators
                    )
                    records_of_seeds.append(record)
                records += records_of_seeds
                show(records_of_seeds)
                if options.json:
                    write(records, options.json)


if __name__ == "__main__":
    main()
