"""The evaluation's probe rule beside a fixed probe, on small and large real sets.

Every generator is trained once and evaluated by both rules.

``python benchmarks/probe_rule.py --data FOLDER --sets small --json FILE``; ``--states FOLDER``
keeps what was trained, so that it resumes.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import CellEvaluator, synthesise
from fedsim.grid.models import Evaluation, Grid
from fedsim.methods.products import before_shortening
from fedsim.runs.prepare import Node, prepare
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Outcome, run_trial

METHODS = ("dp-gaussian", "dp-gmm", "fedhypevae-warm", "fedhypevae-sites", "fedhypevae")
RULE = Evaluation()
FIXED = Evaluation(per_class=1000, probe_c=0.01)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LARGE = [f"{name}_effnetlite0" for name in ("organamnist", "bloodmnist", "ham10000_sites")]
LARGE += [f"{name}_dinov2s" for name in ("organamnist", "ham10000_sites", "chestxray", "milk10k")]
EPSILONS = {"small": (4, 32, float("inf")), "large": (1, 8, float("inf"))}


def small_sets(data: Path, out: Path) -> None:
    """Three organs, two organs and two hospitals, of a few hundred rows each."""
    organs, lesions = (
        np.load(data / f"{name}_effnetlite0.npz") for name in ("organamnist", "ham10000_sites")
    )
    x = organs["x"]
    y = organs["y"]
    split = organs["split"]
    for name, classes in (("small3", (1, 4, 8)), ("small2", (1, 4))):
        picked = [
            np.flatnonzero((y == label) & (split == part)) for label in classes for part in (0, 2)
        ]
        picked = [rows[np.random.default_rng(0).permutation(len(rows))[:150]] for rows in picked]
        new = {label: number for number, label in enumerate(classes)}
        rows = np.concatenate(picked)
        np.savez(
            out / f"{name}.npz",
            x=x[rows].astype(np.float32),
            y=np.array([new[label] for label in y[rows]]),
            split=split[rows],
        )
    two = np.isin(lesions["site"], ["rosendahl", "vidir_modern"])
    picked = [
        np.random.default_rng(0).permutation(np.flatnonzero(two & (lesions["split"] == part)))[:500]
        for part in (0, 2)
    ]
    rows = np.concatenate(picked)
    columns = {key: lesions[key][rows] for key in ("y", "split", "site")}
    np.savez(out / "ham2.npz", x=lesions["x"][rows].astype(np.float32), **columns)


def grid_of(name: str, path: Path, method: str, epsilon: float, seed: int) -> Grid:
    """One cell; the hospitals are clients, else 3 or 10 clients hold the rows."""
    sites = {"partition": {"scheme": "column", "column": "site"}, "clients": 2}
    if name.startswith("small"):
        mixed = {"alpha": 1.0, "clients": 3}
    else:
        mixed = {"alpha": 0.3, "clients": 10}
    keys = {"algorithms": [method], "epsilon": epsilon, "seeds": seed, "delta": 1e-4}
    return Grid.model_validate(
        {
            "dataset": {"npz": str(path), "overlap": "drop"},
            **keys,
            **(sites if name == "ham2" else mixed),
        }
    )


def evaluated(
    name: str,
    path: Path,
    method: str,
    epsilon: float,
    seed: int,
    states: Path,
    evaluators: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The scores of one training by the rule, by the fixed probe and by the best of five penalties,
    with the seconds of either rule.
    """
    prepared = prepare(grid_of(name, path, method, epsilon, seed), [Node(4.0, 0.0)])
    (data,) = prepared.data.values()
    trial = prepared.trials[0].given(data)
    kept = states / f"{name}.{method}.{epsilon}.{seed}.safetensors"
    if not kept.exists():
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        save_file({key: value.contiguous() for key, value in outcome.state.items()}, kept)
    state = load_file(kept)
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
    scores = []
    seconds = []
    for evaluation in (RULE, FIXED):
        cell = trial.cell.model_copy(
            update={"evaluation": evaluation.model_copy(update={"evaluators": evaluators})}
        )
        start = time.process_time()
        made, shares = restored(algorithm, state, trial.plan, Seeds(seed))
        if evaluation is FIXED:
            drawn = before_shortening(made)
        else:
            drawn = made
        scores.append(
            CellEvaluator(cell, data, trial.partition, drawn, shares)
            .result()
            .scores.balanced_accuracy
        )
        seconds.append(time.process_time() - start)
    if name in ("small2", "small3", "ham2"):
        best = best_of_five(made, data, seed)
    else:
        best = None
    row = {"set": name, "method": method, "epsilon": epsilon, "seed": seed}
    return {**row, "rule": scores[0], "fixed": scores[1], "best": best, "seconds": seconds}


def best_of_five(made: Any, data: Embeddings, seed: int) -> float:
    """scikit-learn's logistic regression on the rows that the rule sees, at the penalty that is
    best on test rows.
    """
    x, y = synthesise(made, data.classes, RULE.rows_per_class(data.dim, data.classes), Seeds(seed))
    mean = x.mean(axis=0)
    scale = np.maximum(x.std(axis=0), 1e-3 * x.std())
    models = [
        LogisticRegression(C=strength, max_iter=200).fit((x - mean) / scale, y)
        for strength in STRENGTHS
    ]
    return max(
        float(balanced_accuracy_score(data.y_test, model.predict((data.x_test - mean) / scale)))
        for model in models
    )


def main() -> None:
    """Train, evaluate, print the means over seeds, write every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", choices=("small", "large"), required=True)
    parser.add_argument("--states", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--evaluators",
        nargs="*",
        default=[],
        help="also timed; knn and fidelity are a grid's default",
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    given.states.mkdir(exist_ok=True, parents=True)
    if given.sets == "small":
        small_sets(given.data, given.states)
    paths = {name: given.states / f"{name}.npz" for name in ("small3", "small2", "ham2")}
    if given.sets == "large":
        paths = {name: given.data / f"{name}.npz" for name in LARGE}
    rows = []
    for name in given.names or paths:
        for method in given.methods:
            for epsilon in EPSILONS[given.sets]:
                some = [
                    evaluated(
                        name,
                        paths[name],
                        method,
                        epsilon,
                        seed,
                        given.states,
                        tuple(given.evaluators),
                    )
                    for seed in given.seeds
                ]
                rows += some
                means = {key: np.mean([row[key] for row in some]) for key in ("rule", "fixed")}
                if some[0]["best"] is not None:
                    best = f" best {np.mean([row['best'] for row in some]):.3f}"
                else:
                    best = ""
                ratio = sum(row["seconds"][0] for row in some) / sum(
                    row["seconds"][1] for row in some
                )
                print(
                    f"{name} {method} {epsilon}: rule {means['rule']:.3f} fixed "
                    f"{means['fixed']:.3f}{best}, time x {ratio:.2f}",
                    flush=True,
                )
                if given.json:
                    given.json.write_text(
                        json.dumps(rows, indent=0).replace("Infinity", '"inf"') + "\n"
                    )


if __name__ == "__main__":
    main()
