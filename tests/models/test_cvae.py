from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedsim.models.cvae import CVAE, ConditionalGenerator, ConditionalSampler, CVAEGenerator

DIM = 5
LATENT = 3
CLASSES = 2
VARIANCE = 0.3


def randomised(model: torch.nn.Module) -> None:
    """The decoder's weights; the variance stays as it is."""
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("observation."):
                parameter.copy_(torch.randn(parameter.shape, generator=stream))


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("kind", ["of a CVAE", "conditional"])
def test_rows_are_what_standard_normal_z_decode_to_with_the_observation_noise(
    kind: str, label: int
) -> None:
    scale = 1.0
    shift = torch.zeros(DIM)
    if kind == "of a CVAE":
        model = CVAE(DIM, CLASSES, LATENT, [4], [], VARIANCE)
        randomised(model)
        made: CVAEGenerator | ConditionalSampler = CVAEGenerator(model)
    else:
        scale = 2.0
        shift = torch.arange(float(DIM))
        generator = ConditionalGenerator(LATENT, CLASSES, [], DIM, VARIANCE * DIM)
        randomised(generator)
        made = ConditionalSampler(generator, scale, shift)
        model = generator

    def decoded(z: Tensor) -> Tensor:
        return model.decoder(z[:, None], torch.full((len(z),), label), z[:, :0])[:, 0].detach()

    prototype = decoded(torch.zeros(1, LATENT))
    map_ = decoded(torch.eye(LATENT)) - prototype
    rows = made.sample(torch.full((40_000,), label), torch.Generator().manual_seed(1))
    covariance = scale**2 * (map_.T @ map_ + VARIANCE * torch.eye(DIM))
    assert torch.allclose(rows.mean(0), shift + scale * prototype[0], atol=0.06)
    assert torch.allclose(torch.cov(rows.T), covariance, atol=0.04 * float(covariance.norm()))
