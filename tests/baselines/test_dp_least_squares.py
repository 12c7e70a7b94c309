"""The closed form's own mathematics."""

import numpy as np
import torch
from cells import centred_at
from exact import exact_sums, rows_of
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from streams import seeded
from torch import Tensor

from baselines.dp_gaussian import DPLeastSquares, DPLeastSquaresParams
from fedsim.methods import Seeds, Server, Task

DIM = 6
CLASSES = 3


def classes_apart(rows: int) -> tuple[Tensor, Tensor]:
    """Three unequal classes with one wide direction, in a small ball off the origin."""
    stream = seeded(0)
    y = torch.multinomial(
        torch.tensor([0.7, 0.2, 0.1]),
        rows,
        replacement=True,
        generator=stream,
    )
    spread = torch.tensor([0.08, 0.02, 0.02, 0.02, 0.02, 0.02])
    means = 0.05 * torch.randn(CLASSES, DIM, generator=stream)
    return 0.3 + means[y] + spread * torch.randn(rows, DIM, generator=stream), y


def test_without_noise_it_is_the_discriminant_of_equal_priors() -> None:
    x, y = classes_apart(4000)
    algorithm = DPLeastSquares(
        DPLeastSquaresParams(radius=1.0),
        Task(DIM, CLASSES, 2),
    )
    server = Server(
        torch.nn.Module(),
        Seeds(0),
        tensors=centred_at(x.mean(0)),
    )
    statistic = algorithm.moment_statistic(1.0)
    sums = exact_sums(statistic, rows_of(x, y), server.tensors)
    algorithm.receive_moments(
        server,
        sums,
        dict.fromkeys(sums, 0.0),
    )
    predicted = algorithm.classifier(server).probabilities(x).argmax(1)
    known = LinearDiscriminantAnalysis(
        solver="lsqr",
        priors=np.full(CLASSES, 1 / CLASSES),
    )
    expected = known.fit(x.double(), y).predict(x.double())
    assert np.mean(predicted.numpy() == expected) > 0.995
