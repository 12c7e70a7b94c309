"""The losses of CVAEs without a hypernetwork: what they weigh against each other."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from streams import seeded
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from baselines.fedavg_cvae import (
    DPCVAE,
    DPCVAEParams,
    FedAvgCVAE,
    FedAvgCVAEParams,
    PrivateEncoders,
)
from fedsim.batch import Layout
from fedsim.methods import Batch, Task

DIM = 5
CLASSES = 3
ROWS = 9
BETA = 0.3
TASK = Task(DIM, CLASSES, 1)
FEDAVG_CVAE = FedAvgCVAE(
    FedAvgCVAEParams(latent=2, encoder_hidden=(4,), beta=BETA, initial_variance=0.2),
    TASK,
)
DP_CVAE = DPCVAE(
    DPCVAEParams(latent=2, hidden=(4,), beta=BETA),
    TASK,
)


def squared_error(x: Tensor, decoded: Tensor) -> Tensor:
    return (x - decoded).square().sum(1)


def scaled_likelihood(x: Tensor, decoded: Tensor) -> Tensor:
    """The negative log-likelihood without its constant, in units of the variance 0.2."""
    log_likelihood = Normal(decoded, math.sqrt(0.2)).log_prob(x).sum(1)
    return -0.2 * (log_likelihood + DIM / 2 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("algorithm", "error", "unit"),
    [(FEDAVG_CVAE, scaled_likelihood, 0.2), (DP_CVAE, squared_error, 1.0)],
    ids=["fedavg-cvae", "dp-cvae"],
)
def test_the_loss_is_the_error_and_beta_times_the_divergence(
    algorithm: PrivateEncoders, error: Callable[[Tensor, Tensor], Tensor], unit: float
) -> None:
    model: Any = algorithm.build(1)
    stream = seeded(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("observation."):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=stream))
        x = torch.randn(ROWS, DIM, generator=stream)
        y = torch.arange(ROWS) % CLASSES
        draws = torch.randn(ROWS, 2, generator=stream)
        layout = Layout(torch.zeros(ROWS, dtype=torch.long), 1)
        parts = algorithm.loss(
            model,
            Batch(x, y, {"posterior": draws}, layout),
        )
        mean, log_var = model.encoder(x, y)
        std = (0.5 * log_var).exp()
        decoded = model.decode(mean + std * draws, y)
    divergence = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0)).sum(1)
    expected = {
        "reconstruction": error(x, decoded),
        "kl": BETA * unit * divergence,
    }
    torch.testing.assert_close(
        dict(parts),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )
