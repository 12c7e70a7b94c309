import numpy as np
import pytest
import torch

from fedsim.models.linear import fit_linear
from fedsim.models.probe import fit_probe


def rows(
    classes: list[int],
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return twenty rows of each class around its own centre."""
    rng = np.random.default_rng(seed)
    y = np.repeat(classes, 20)
    centres = rng.normal(size=(10, 6))
    noise = rng.normal(size=(len(y), 6))
    x = centres[y] + 0.5 * noise
    return x.astype(np.float32), y.astype(np.int64)


@pytest.mark.parametrize(
    "classes",
    [
        [0, 1, 2, 3],
        [1, 3],
        [2],
    ],
)
def test_folded_probe_predicts_as_the_probe(classes: list[int]) -> None:
    x, y = rows(classes)
    other, _ = rows(classes, seed=1)
    folded = fit_linear(x, y, 5, 0.1)
    probabilities = folded.probabilities(torch.from_numpy(other))
    predicted = probabilities.argmax(1).numpy()
    expected = fit_probe(x, y, 0.1).predict(other)
    assert (predicted == expected).mean() > 0.98
    absent = np.setdiff1d(np.arange(5), classes)
    assert probabilities[:, absent].sum() == 0
    torch.testing.assert_close(
        probabilities.sum(1),
        torch.ones(len(other)),
    )
