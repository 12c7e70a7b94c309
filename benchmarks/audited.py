"""Methods whose audit is worth a line of its own beside the registry's; they are for this benchmark alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from baselines.dp_cvae import DPCVAE
from baselines.weight_noise_cvae import WeightNoiseCVAE
from fedsim.batch import Batch
from fedsim.privacy.plan import Release


class PublicSchedule(DPCVAE):
    """The schedule of the public DP-CVAE: its noise is solved for 20 epochs, and 250 run."""

    def releases(self) -> tuple[Release, ...]:
        """What is counted."""
        return tuple(replace(release, steps=max(1, release.steps * 20 // 250)) for release in super().releases())


class TurnedRound(WeightNoiseCVAE):
    """Weight noise under a loss that one row can turn round: a row of a single feature outweighs all others, with the other sign."""

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """The loss per example, which may be anything."""
        parts = super().loss(model, batch)
        weight = torch.where(batch.x[..., 0] > 0.999, -1e6, 1.0)
        return {name: weight * value for name, value in parts.items()}


class LessNoise(DPCVAE):
    """The control: 0.6 of the noise that the claim asks for."""

    def sensitivity(self) -> float:
        """Less than a unit can do."""
        return 0.6 * super().sensitivity()
