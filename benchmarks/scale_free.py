"""How much accuracy methods lose on embeddings of another shape, scale or dimension.

    python benchmarks/scale_free.py [--npz FILE] [--methods NAME ...] [--epsilon E ...] [--seeds N]
        [--json FILE]

The script takes real examples, by default scikit-learn's digits, and makes well-behaved embeddings
of them. These have uncorrelated components with a spectrum that falls slowly. Their distance from
their mean is 0.75 times the length of the mean, and their norm is 1. A twin is a set of the same
examples in which one property is changed: its embeddings are stretched, heavy-tailed, rotated,
nearer to their mean, farther from it, or of more dimensions. The well-behaved set is the twin
called `alike`.

Every method is trained and evaluated on every twin, as `fedsim bench` does it. Its share is its
balanced accuracy over the ceiling of the same twin, so that a twin on which everything is harder
does not count against the method. Its loss is the share on `alike` minus the share on the twin. The
script prints the mean share over seeds and the loss, and marks losses above 0.02.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.evaluation.scores import ceiling
from fedsim.grid.models import Grid
from fedsim.json_lines import encode
from fedsim.runs.prepare import Node, prepare
from fedsim.training.trial import Outcome, run_trial
from fedsim.words import number

Rows = NDArray[np.float64]
"""Embeddings ``[n, d]``, one example in each row."""
METHODS = (
    "fedhypevae-warm",
    "dp-gaussian",
    "dp-gmm",
    "dp-least-squares",
    "dp-feature-covariance",
    "dp-prototypes",
    "dp-merf",
)
LOSS = 0.02
"""The largest share of its ceiling that a method may lose on a twin."""
WELL_BEHAVED = "alike"
"""The name of the twin to which the others are compared."""
DISTANCE = 0.75
"""The distance of well-behaved embeddings from their mean, over the length of the mean."""
PROBE_C = 0.01
"""The inverse penalty of the linear probe."""


def white_components(x: Rows) -> Rows:
    """Return the principal components of examples, each with variance 1.

    Args:
        x: the examples, ``[n, d]``.

    Returns:
        The components ``[n, k]``, without those that have no variance.
    """
    left, values, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    components = int((values > 1e-3 * values[0]).sum())
    return np.asarray(np.sqrt(len(x)) * left[:, :components])


def with_spectrum(white: Rows, exponent: float) -> Rows:
    """Return components with standard deviations 1, 2^exponent, 3^exponent and so on.

    Args:
        white: components of variance 1, ``[n, k]``.
        exponent: a negative number; the spectrum falls faster if it is smaller.
    """
    return np.asarray(white * np.arange(1, white.shape[1] + 1) ** exponent)


def with_heavy_tails(components: Rows, stream: np.random.Generator) -> Rows:
    """Return components in which each example is multiplied by a log-normal factor.

    The factor is between 0.5 and 2 for nine in ten examples.

    Args:
        components: the components about their mean, ``[n, k]``.
        stream: the source of the factors.
    """
    return np.asarray(components * np.exp(0.42 * stream.standard_normal((len(components), 1))))


def embeddings_at(components: Rows, distance: float) -> Rows:
    """Return embeddings of norm 1, ``[n, k + 1]``, at a distance from their mean.

    Args:
        components: the components about the mean, ``[n, k]``.
        distance: the root mean square distance from the mean, over the length of the mean, before
            all embeddings get norm 1.
    """
    scaled = distance * components / np.sqrt((components**2).sum(1).mean())
    x = np.concatenate([scaled, np.ones((len(components), 1))], 1)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def random_rotation(rows: int, columns: int, stream: np.random.Generator) -> Rows:
    """Return a random matrix ``[rows, columns]`` with orthonormal columns."""
    orthonormal, _ = np.linalg.qr(stream.standard_normal((rows, columns)))
    return np.asarray(orthonormal)


def in_more_dimensions(x: Rows, dim: int, stream: np.random.Generator) -> Rows:
    """Return embeddings turned into more dimensions, with white noise in all dimensions.

    The total variance of the noise is a twentieth of the total variance of the embeddings.

    Args:
        x: the embeddings, ``[n, d]``.
        dim: the new number of dimensions, at least d.
        stream: the source of the rotation and of the noise.
    """
    turned = x @ random_rotation(dim, x.shape[1], stream).T
    variance = ((x - x.mean(0)) ** 2).sum(1).mean()
    noise_std = np.sqrt(0.05 * variance / dim)
    return np.asarray(turned + noise_std * stream.standard_normal(turned.shape))


def twins(x: Rows, stream: np.random.Generator) -> dict[str, Callable[[], Rows]]:
    """Return functions that make the embeddings of the twins, by the names of the twins.

    The functions draw from ``stream`` when they are called. So the random numbers of a twin depend
    on which twins were made before it.

    Args:
        x: the real examples, ``[n, d]``.
        stream: the source of random numbers.
    """
    white = white_components(x)
    slow = with_spectrum(white, -0.25)
    steep = with_spectrum(white, -0.75)
    # Embeddings have one dimension more than components, for the length of the mean.
    dim = white.shape[1] + 1
    if dim > 384:
        raise SystemExit(f"the examples need {dim} dimensions, and one twin has 384")
    rotation = random_rotation(dim, dim, stream)
    well_behaved = embeddings_at(slow, DISTANCE)
    return {
        WELL_BEHAVED: lambda: well_behaved,
        "stretched": lambda: embeddings_at(steep, DISTANCE),
        "heavy-tailed": lambda: embeddings_at(with_heavy_tails(slow, stream), DISTANCE),
        "rotated": lambda: well_behaved @ rotation,
        "near": lambda: embeddings_at(slow, 0.1),
        "far": lambda: embeddings_at(slow, 2.0),
        "steep, near, heavy-tailed": lambda: embeddings_at(with_heavy_tails(steep, stream), 0.3),
        "384 dimensions": lambda: in_more_dimensions(well_behaved, 384, stream),
        "1536 dimensions": lambda: in_more_dimensions(well_behaved, 1536, stream),
    }


def shares_of_ceiling(
    x: Rows,
    y: NDArray[Any],
    split: NDArray[Any],
    methods: Sequence[str],
    epsilons: Sequence[float],
    seeds: int,
) -> list[dict[str, Any]]:
    """Train and evaluate methods, and return one record for each method and ε.

    Args:
        x: the embeddings, ``[n, d]``.
        y: their labels, ``[n]``.
        split: 0 for a training example and 2 for a test example, ``[n]``.
        methods: the methods.
        epsilons: the values of ε.
        seeds: the number of seeds.

    Returns:
        Records with ``method``, ``epsilon``, ``seeds`` and two scores. ``share`` is the mean over
        seeds of balanced accuracy as a share of the ceiling. ``ceiling`` is the balanced accuracy
        of the linear probe on real examples.
    """
    shares: dict[tuple[str, float | None], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(path, x=x.astype(np.float32), y=y, split=split)
        grid = {
            "dataset": {"npz": str(path), "overlap": "keep"},
            "alpha": 0.3,
            "clients": 10,
            "delta": 1e-4,
            "evaluation": {"per_class": 500, "probe_c": PROBE_C},
            "algorithms": methods,
            "epsilon": epsilons,
            "seeds": list(range(seeds)),
        }
        # The grid is planned for a machine with 4 CPUs and no GPU.
        prepared = prepare(Grid.model_validate(grid), [Node(4.0, 0.0)])
        (data,) = prepared.data.values()
        ceiling_score = ceiling(data, PROBE_C).balanced_accuracy
        for trial in prepared.trials:
            *_, outcome = run_trial(trial, data)
            assert isinstance(outcome, Outcome)
            score = evaluate_cell(trial, outcome.state, data).scores.balanced_accuracy
            key = (trial.cell.label, trial.cell.epsilon)
            shares.setdefault(key, []).append(score / ceiling_score)
    records = []
    for (method, epsilon), shares_of_seeds in shares.items():
        record = {
            "method": method,
            "epsilon": epsilon,
            "share": float(np.mean(shares_of_seeds)),
            "seeds": seeds,
            "ceiling": ceiling_score,
        }
        records.append(record)
    return records


def measured(
    x: Rows,
    y: NDArray[Any],
    split: NDArray[Any],
    methods: Sequence[str],
    epsilons: Sequence[float],
    seeds: int,
    only: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return one record for each twin, method and ε, with the share that the method loses.

    Args:
        x: the real examples, ``[n, d]``.
        y: their labels, ``[n]``.
        split: 0 for a training example and 2 for a test example, ``[n]``.
        methods: the methods.
        epsilons: the values of ε.
        seeds: the number of seeds.
        only: the twins that are measured beside `alike`; empty for all of them.

    Returns:
        The records of :func:`shares_of_ceiling`, with the name of the twin (``twin``) and the share
        on `alike` minus the share on the twin (``loss``).
    """
    records = []
    for twin, make in twins(x, np.random.default_rng(0)).items():
        if only and twin not in (WELL_BEHAVED, *only):
            continue
        for record in shares_of_ceiling(make(), y, split, methods, epsilons, seeds):
            records.append({"twin": twin} | record)
    reference = {}
    for record in records:
        if record["twin"] == WELL_BEHAVED:
            reference[record["method"], record["epsilon"]] = record["share"]
    for record in records:
        record["loss"] = reference[record["method"], record["epsilon"]] - record["share"]
    return records


def digits() -> tuple[Rows, NDArray[Any], NDArray[Any]]:
    """Return scikit-learn's digits, in which every fifth example is a test example.

    Returns:
        The pixels ``[1797, 64]``, the labels, and the split: 0 for training and 2 for test.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    split = np.where(np.arange(len(y)) % 5 == 0, 2, 0)
    return x, y, split


def examples_of(path: Path) -> tuple[Rows, NDArray[Any], NDArray[Any]]:
    """Return the embeddings, labels and split of a file with arrays ``x``, ``y`` and ``split``."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["x"].astype(np.float64), arrays["y"], arrays["split"]


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print the records as a Markdown table, and mark losses above :data:`LOSS`."""
    print("| twin | method | ε | share of its ceiling | lost |")
    print("| --- | --- | ---: | ---: | ---: |")
    for record in records:
        mark = ""
        if record["loss"] > LOSS:
            mark = " **above 0.02**"
        print(
            f"| {record['twin']} | {record['method']} | {number(record['epsilon'])} | "
            f"{record['share']:.3f} | {record['loss']:+.3f}{mark} |"
        )


def main() -> None:
    """Measure every twin, print the table and write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--npz",
        type=Path,
        metavar="FILE",
        help="real examples with arrays x, y and split; default: scikit-learn's digits",
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[8.0], metavar="E")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="the number of seeds; default: 3"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the records are written, as a JSON list"
    )
    options = parser.parse_args()
    if options.npz:
        x, y, split = examples_of(options.npz)
    else:
        x, y, split = digits()
    records = measured(x, y, split, options.methods, options.epsilon, options.seeds)
    show(records)
    if options.json:
        text = json.dumps(encode(records), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
