import numpy as np
import pytest
import torch

from fedsim.models.linear import fit_linear
from fedsim.models.probe import fit_probe


def rows(classes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Twenty rows of each class around a centre of its own."""
    rng = np.random.default_rng(seed)
    y = np.repeat(classes, 20)
    return (rng.normal(size=(10, 6))[y] + 0.5 * rng.normal(size=(len(y), 6))).astype(
        np.float32
    ), y.astype(np.int64)


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1, 3], [2]])
def test_the_folded_probe_predicts_as_the_probe(classes: list[int]) -> None:
    x, y = rows(classes)
    other, _ = rows(classes, seed=1)
    folded = fit_linear(x, y, 5, 0.1)
    probe = fit_probe(x, y, 0.1)
    probabilities = folded.probabilities(torch.from_numpy(other))
    assert (probabilities.argmax(1).numpy() == probe.predict(other)).mean() > 0.98
    absent = [label for label in range(5) if label not in classes]
    assert float(probabilities[:, absent].sum()) == 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(other)))
