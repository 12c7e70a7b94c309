import numpy as np
import pytest

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.scores import (
    Ceiling,
    Scores,
    ceiling,
    local_only,
    probe_predictions,
    scores_of,
)
from fedsim.models.probe import fit_probe, strengths
from fedsim.partition import PartitionSpec, make_partition


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine rows of one class to one of another, told apart by a small difference of two
    features.
    """
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 10 == 0).astype(np.int64)
    apart = 0.1 * y + 0.05 * rng.normal(size=n)
    return (rng.normal(size=(n, 1)) + np.stack([np.zeros(n), apart], 1)).astype(np.float32), y


def test_the_ceiling_is_the_best_of_probes_of_all_strengths_natural_and_balanced():
    (x, y), (x_test, y_test), weakest = skewed(400, 0), skewed(2000, 1), 100.0
    found: dict[bool, list[Scores]] = {}
    for balanced in (False, True):
        probes = [
            fit_probe(x, y, strength, balanced=balanced) for strength in (*strengths(2), weakest)
        ]
        found[balanced] = [
            scores_of(probe_predictions(probe, x_test, y_test, 2)) for probe in probes
        ]
    best = Ceiling(found[True][3].balanced_accuracy, found[False][-1]["accuracy"])
    assert best.balanced_accuracy == max(
        each.balanced_accuracy for each in found[False] + found[True]
    )
    assert best.accuracy == max(each["accuracy"] for each in found[False] + found[True])
    assert ceiling(Embeddings("skewed", x, y, x_test, y_test, classes=2), weakest) == best


def test_local_only_is_of_balanced_probes_at_the_strength_that_is_best_for_the_clients_mean():
    (x, y), (x_test, y_test) = skewed(800, 0), skewed(2000, 1)
    data = Embeddings("skewed", x, y, x_test, y_test, classes=2)
    spec = PartitionSpec()
    parts = make_partition(y, spec=spec, alpha=1.0, clients=3, seed=0, columns={})

    def mean(strength: float, balanced: bool) -> float:
        probes = [fit_probe(x[rows], y[rows], strength, balanced=balanced) for rows in parts.rows]
        return float(
            np.mean(
                [
                    scores_of(probe_predictions(probe, x_test, y_test, 2)).balanced_accuracy
                    for probe in probes
                ]
            )
        )

    weakest = 100.0
    means = [mean(strength, True) for strength in (*strengths(2), weakest)]
    assert len(set(means)) > 1
    found = local_only(data, parts, spec, weakest)
    assert found.mean == max(means)
    assert found.mean > mean(weakest, False) + 0.05
    assert means[0] < local_only(data, parts, spec, None).mean == max(means[:-1])
    # under a Dirichlet scheme all test rows are everybody's own
    assert np.mean([score for score in found.clients if score is not None]) == pytest.approx(
        found.mean
    )
