import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.evaluation.weights import best_weight, held_out
from fedsim.models.linear import Interpolated, LinearClassifier, LocalClassifiers, fit_linear
from fedsim.models.probe import fit_probe


def rows(classes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Twenty rows of each class around a centre of its own."""
    rng = np.random.default_rng(seed)
    y = np.repeat(classes, 20)
    return (rng.normal(size=(10, 6))[y] + 0.5 * rng.normal(size=(len(y), 6))).astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1, 3], [2]])
def test_the_folded_probe_predicts_as_the_probe(classes: list[int]) -> None:
    x, y = rows(classes)
    other, _ = rows(classes, seed=1)
    folded, probe = fit_linear(x, y, 5, 0.1), fit_probe(x, y, 0.1)
    probabilities = folded.probabilities(torch.from_numpy(other))
    assert (probabilities.argmax(1).numpy() == probe.predict(other)).mean() > 0.98
    absent = [label for label in range(5) if label not in classes]
    assert float(probabilities[:, absent].sum()) == 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(other)))


@given(st.integers(1, 60))
def test_about_a_fifth_is_held_out_and_never_nothing(count: int) -> None:
    chosen = held_out(count)
    assert 1 <= chosen.sum() <= max(1, count // 5)


def test_the_best_weight_is_the_one_whose_mixture_is_most_often_right() -> None:
    y = torch.tensor([0, 0, 1, 1])
    right, wrong = torch.eye(2)[y], torch.eye(2)[1 - y]
    ones = torch.ones(4)
    assert best_weight(right, wrong, y, ones) >= 0.5
    assert best_weight(wrong, right, y, ones) == 0
    assert best_weight(right, right, y, ones) == 0  # of equals the smallest


def test_interpolation_is_between_its_parts() -> None:
    x = torch.randn(7, 3)
    a, b = LinearClassifier(torch.randn(4, 3), torch.randn(4)), LinearClassifier(torch.randn(4, 3), torch.randn(4))
    mixed = Interpolated(a, b, 0.3).probabilities(x)
    torch.testing.assert_close(mixed, 0.3 * a.probabilities(x) + 0.7 * b.probabilities(x))
    torch.testing.assert_close(LocalClassifiers([a, b]).probabilities(x), (a.probabilities(x) + b.probabilities(x)) / 2)
