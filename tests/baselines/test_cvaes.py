"""The losses of CVAEs without a hypernetwork: what they weigh against each other."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from baselines.fedavg_cvae import DPCVAE, DPCVAEParams, FedAvgCVAE, FedAvgCVAEParams
from fedsim.batch import Layout
from fedsim.methods import Batch, Task

DIM = 5
CLASSES = 3
ROWS = 9
BETA = 0.3
METHODS = [
    FedAvgCVAE(
        FedAvgCVAEParams(latent=2, encoder_hidden=(4,), beta=BETA, initial_variance=0.2),
        Task(DIM, CLASSES, 1),
    ),
    DPCVAE(DPCVAEParams(latent=2, hidden=(4,), beta=BETA), Task(DIM, CLASSES, 1)),
]


@pytest.mark.parametrize("algorithm", METHODS, ids=["fedavg-cvae", "dp-cvae"])
def test_the_loss_is_the_reconstruction_and_beta_times_the_divergence_in_one_unit(
    algorithm: FedAvgCVAE | DPCVAE,
) -> None:
    model: Any = algorithm.build(1)
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("observation."):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=stream))
        x, draws = (torch.randn(ROWS, size, generator=stream) for size in (DIM, 2))
        y = torch.arange(ROWS) % CLASSES
        found = algorithm.loss(
            model, Batch(x, y, {"posterior": draws}, Layout(torch.zeros(ROWS, dtype=torch.long), 1))
        )
        mean, log_var = model.encoder(x, y)
        std = (0.5 * log_var).exp()
        decoded = model.decode(mean + std * draws, y)
    divergence = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0)).sum(1)
    if isinstance(algorithm, DPCVAE):
        unit = 1.0
        reconstruction = (x - decoded).square().sum(1)
    else:
        unit = 0.2
        reconstruction = -unit * (
            Normal(decoded, math.sqrt(unit)).log_prob(x).sum(1) + DIM / 2 * math.log(2 * math.pi)
        )
    torch.testing.assert_close(found["reconstruction"], reconstruction, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["kl"], BETA * unit * divergence, rtol=1e-4, atol=1e-4)
