import numpy as np
import pytest

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation import scores, subset
from fedsim.evaluation.scores import Scores, ceiling, local_only, probe_predictions, scores_of
from fedsim.models.probe import fit_probe, strengths
from fedsim.partition import PartitionSpec, make_partition

WEAKEST = 100.0


def skewed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine rows of one class to one of another, which differ a little in one of two features."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 10 == 0).astype(np.int64)
    apart = 0.1 * y + 0.05 * rng.normal(size=n)
    x = rng.normal(size=(n, 1)) + np.stack([np.zeros(n), apart], 1)
    return x.astype(np.float32), y


DATA = Embeddings(
    "skewed",
    *skewed(800, 0),
    *skewed(2000, 1),
    classes=2,
)


def probe_scores(
    rows: np.ndarray,
    strength: float,
    balanced: bool,
) -> Scores:
    """Scores, on all test rows, of a probe of some training rows."""
    probe = fit_probe(
        DATA.x_train[rows],
        DATA.y_train[rows],
        strength,
        balanced=balanced,
    )
    return scores_of(probe_predictions(probe, DATA.x_test, DATA.y_test, 2))


def test_the_ceiling_is_the_best_natural_or_balanced_probe():
    tried = [*strengths(2), WEAKEST]
    everything = np.arange(len(DATA.y_train))
    natural = [probe_scores(everything, strength, balanced=False) for strength in tried]
    balanced = [probe_scores(everything, strength, balanced=True) for strength in tried]
    best = ceiling(DATA, WEAKEST)
    for score in ("accuracy", "balanced_accuracy"):
        assert getattr(best, score) == max(each[score] for each in natural + balanced)
    assert max(each["accuracy"] for each in balanced) < best.accuracy
    assert max(each.balanced_accuracy for each in natural) < best.balanced_accuracy


@pytest.fixture
def partition():
    return make_partition(
        DATA.y_train,
        spec=PartitionSpec(),
        alpha=1.0,
        clients=3,
        seed=0,
        columns={},
    )


def mean_over_clients(
    partition,
    strength: float,
    balanced: bool = True,
) -> float:
    scores = [probe_scores(rows, strength, balanced) for rows in partition.rows]
    return float(np.mean([each.balanced_accuracy for each in scores]))


def test_local_only_has_the_strength_of_the_best_mean(partition):
    means = [mean_over_clients(partition, strength) for strength in (*strengths(2), WEAKEST)]
    assert local_only(DATA, partition, PartitionSpec(), WEAKEST).mean == max(means)
    assert local_only(DATA, partition, PartitionSpec(), None).mean == max(means[:-1])
    assert min(means) < max(means)


def test_local_only_weighs_classes_evenly(partition):
    local = local_only(DATA, partition, PartitionSpec(), WEAKEST)
    assert local.mean > mean_over_clients(partition, WEAKEST, balanced=False) + 0.05


def test_without_sites_all_test_rows_are_everybodys_own(partition):
    local = local_only(DATA, partition, PartitionSpec(), WEAKEST)
    assert np.mean(local.clients) == pytest.approx(local.mean)


def test_references_say_their_rows_and_seconds(partition):
    best = ceiling(DATA, None)
    local = local_only(DATA, partition, PartitionSpec(), None)
    assert best.reference_rows == local.reference_rows == 800
    assert best.seconds > 0
    assert local.seconds > 0


@pytest.fixture
def large(monkeypatch):
    """Count data of this size as large."""
    monkeypatch.setattr(subset, "LARGE", 100)


def test_references_of_large_data_are_nearly_those_of_small_data(partition, monkeypatch):
    small = ceiling(DATA, None)
    small_local = local_only(DATA, partition, PartitionSpec(), None)
    monkeypatch.setattr(subset, "LARGE", 100)
    assert ceiling(DATA, None).balanced_accuracy == pytest.approx(small.balanced_accuracy, abs=0.01)
    local = local_only(DATA, partition, PartitionSpec(), None)
    assert local.mean == pytest.approx(small_local.mean, abs=0.01)
    assert local.clients == pytest.approx(small_local.clients, abs=0.01)


def test_the_ceiling_of_many_rows_uses_a_fixed_choice_of_them(large, monkeypatch):
    monkeypatch.setattr(scores, "MOST_TRAIN_ROWS", 100)
    best = ceiling(DATA, None)
    assert best.reference_rows == 100
    assert best == ceiling(DATA, None)
    assert best.balanced_accuracy > 0.7


@pytest.mark.parametrize("most_rows_times_classes", [100, 1_000_000])
def test_local_only_of_many_clients_is_the_mean_of_some(
    partition, monkeypatch, most_rows_times_classes
):
    monkeypatch.setattr(subset, "LARGE", most_rows_times_classes)
    whole = local_only(DATA, partition, PartitionSpec(), None)
    monkeypatch.setattr(subset, "MOST_LOCAL_SCORES", 10)
    some = local_only(DATA, partition, PartitionSpec(), None)
    assert some.clients[1] is None
    assert some.mean == pytest.approx(np.mean([some.clients[0], some.clients[2]]))
    assert some.mean == pytest.approx(whole.mean, abs=0.1)
    assert some.reference_rows == len(partition.rows[0]) + len(partition.rows[2])
