"""The closed form's own mathematics."""

import numpy as np
import torch
from cells import centred_at
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from baselines.dp_gaussian import DPLeastSquares, DPLeastSquaresParams
from fedsim.methods import (
    Norms,
    Rows,
    Seeds,
    Server,
    Task,
    clipped_statistics,
    rounded,
    unit_weights,
)
from fedsim.privacy.statistics.moments import MOMENT_WEIGHTS

DIM = 6
CLASSES = 3


def classes_apart(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three unequal classes with one wide direction, in a small ball off the origin."""
    stream = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), rows, replacement=True, generator=stream)
    spread = torch.tensor([0.08, 0.02, 0.02, 0.02, 0.02, 0.02])
    means = 0.05 * torch.randn(CLASSES, DIM, generator=stream)
    return 0.3 + means[y] + spread * torch.randn(rows, DIM, generator=stream), y


def test_without_noise_it_is_the_discriminant_of_equal_priors() -> None:
    x, y = classes_apart(4000, 0)
    algorithm = DPLeastSquares(DPLeastSquaresParams(radius=1.0), Task(DIM, CLASSES, 2))
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(x.mean(0)))
    weights = unit_weights(MOMENT_WEIGHTS)
    sums, _ = clipped_statistics(
        algorithm.moment_products(Rows(x, y, torch.zeros_like(y)), server.tensors),
        Norms(1.0, weights=weights),
    )
    exact = {name: value / weights[name] for name, value in rounded(sums).items()}
    algorithm.receive_moments(server, exact, dict.fromkeys(weights, 0.0))
    found = algorithm.classifier(server).probabilities(x)
    known = (
        LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(CLASSES, 1 / CLASSES))
        .fit(x.double(), y)
        .predict_proba(x.double())
    )
    assert float((found.argmax(1) == torch.from_numpy(known).argmax(1)).float().mean()) > 0.995
