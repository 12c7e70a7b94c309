"""The closed form's own mathematics."""

import numpy as np
import torch
from released import centred_at
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from baselines.dp_gaussian import DPLeastSquares, DPLeastSquaresParams
from fedsim.methods import Norms, Rows, Seeds, Server, Task, clipped_statistics, rounded, unit_weights
from fedsim.privacy.statistics.moments import MOMENT_WEIGHTS

DIM, CLASSES = 6, 3


def method(**params: float) -> DPLeastSquares:
    return DPLeastSquares(DPLeastSquaresParams.model_validate(params), Task(DIM, CLASSES, 2))


def classes_apart(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three unequal classes with one wide direction, in a small ball off the origin."""
    stream = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), rows, replacement=True, generator=stream)
    spread = torch.tensor([0.08, 0.02, 0.02, 0.02, 0.02, 0.02])
    means = 0.05 * torch.randn(CLASSES, DIM, generator=stream)
    return 0.3 + means[y] + spread * torch.randn(rows, DIM, generator=stream), y


def receive(x: torch.Tensor, y: torch.Tensor, std: dict[str, float], drawn: float = 0.0, stream: torch.Generator | None = None) -> Server:
    """The server after some rows' moments, which it takes for noisy by ``std``; noise on the class sums is ``drawn``, the rest exact."""
    algorithm = DPLeastSquares(DPLeastSquaresParams(radius=1.0), Task(x.shape[1], CLASSES, 2))
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(x.mean(0)))
    weights = unit_weights(MOMENT_WEIGHTS)
    sums, _ = clipped_statistics(algorithm.moment_products(Rows(x, y, torch.zeros_like(y)), server.tensors), Norms(1.0, weights=weights))
    sums = {name: value / weights[name] for name, value in rounded(sums).items()}
    sums["class_sums"] += drawn * torch.randn(sums["class_sums"].shape, generator=stream)
    algorithm.receive_moments(server, sums, std)
    return server


def test_without_noise_it_is_the_discriminant_of_equal_priors() -> None:
    x, y = classes_apart(4000, 0)
    found = method(radius=1.0).classifier(receive(x, y, dict.fromkeys(MOMENT_WEIGHTS, 0.0))).probabilities(x)
    known = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(CLASSES, 1 / CLASSES)).fit(x.double(), y).predict_proba(x.double())
    assert float((found.argmax(1) == torch.from_numpy(known).argmax(1)).float().mean()) > 0.995
