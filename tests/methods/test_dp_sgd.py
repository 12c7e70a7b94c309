"""DP-SGD estimates the energy of gradients that are nothing but noise."""

from typing import Any

import pytest
from cells import one_cell, quick

from fedsim.seeds import Seeds
from fedsim.training.rounds import train
from fedsim.training.trial import local_pool


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_pure_noise_gradients_have_the_energy_of_the_noise(trust: str) -> None:
    entry = quick("fedhypevae", precondition=0, encoder="trained", rounds=8, latent=4)
    trial, data, algorithm = one_cell(
        entry,
        epsilon=0.02,
        clients=2,
        trust=trust,
    )
    checkpoints: list[Any] = []
    rounds = train(
        algorithm,
        local_pool(trial, data),
        trial.plan,
        Seeds(0),
        checkpoint=lambda capture: checkpoints.append(capture()),
    )
    list(rounds)
    energies = [
        float(value.mean())
        for name, value in checkpoints[-1].tensors.items()
        if "adam.signal." in name and name.endswith(("rows.weight", "encoder.head.weight"))
    ]
    assert len(energies) == 2
    assert min(energies) > 0.8
    assert max(energies) < 1.25
