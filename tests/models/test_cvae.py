"""Generators draw what standard normal z decode to, with the observation noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from streams import seeded
from torch import Tensor, nn

from fedsim.models.cvae import CVAE, ConditionalGenerator, ConditionalSampler, CVAEGenerator

DIM = 5
LATENT = 3
CLASSES = 2
VARIANCE = 0.3


def randomised(model: Any) -> Any:
    """Return the model with a random decoder; the variance stays as it is."""
    stream = seeded(0)
    for parameter in model.decoder.parameters():
        nn.init.normal_(parameter, generator=stream)
    return model


def check_sample(
    generator: CVAEGenerator | ConditionalSampler,
    decoder: nn.Module,
    label: int,
    scale: float = 1.0,
    shift: Tensor | float = 0.0,
) -> None:
    """Check the mean and the covariance of the generator's rows."""

    def decoded(z: Tensor) -> Tensor:
        rows = decoder(
            z[:, None],
            torch.full((len(z),), label),
            z[:, :0],
        )
        return rows[:, 0].detach()

    (prototype,) = decoded(torch.zeros(1, LATENT))
    linear = decoded(torch.eye(LATENT)) - prototype
    rows = generator.sample(
        torch.full((40_000,), label),
        seeded(1),
    )
    covariance = scale**2 * (linear.T @ linear + VARIANCE * torch.eye(DIM))
    tolerance = 0.04 * float(covariance.norm())
    assert torch.allclose(
        rows.mean(0),
        shift + scale * prototype,
        atol=0.06,
    )
    assert torch.allclose(
        torch.cov(rows.T),
        covariance,
        atol=tolerance,
    )


@pytest.mark.parametrize("label", range(CLASSES))
def test_rows_of_a_cvae_are_decoded_normal_z_with_noise(label: int) -> None:
    model = randomised(CVAE(DIM, CLASSES, LATENT, [4], [], VARIANCE))
    generator = CVAEGenerator(model)
    check_sample(generator, model.decoder, label)


@pytest.mark.parametrize("label", range(CLASSES))
def test_rows_of_a_conditional_generator_are_scaled_and_shifted(label: int) -> None:
    model = randomised(
        ConditionalGenerator(
            LATENT,
            CLASSES,
            [],
            DIM,
            VARIANCE * DIM,
        )
    )
    shift = torch.arange(float(DIM))
    sampler = ConditionalSampler(model, 2.0, shift)
    check_sample(sampler, model.decoder, label, 2.0, shift)
