"""How DP-SGD follows the signal in its noise."""

from typing import Any

import pytest
from cells import one_cell, quick

from fedsim.seeds import Seeds
from fedsim.training.rounds import train
from fedsim.training.trial import local_pool


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_pure_noise_gradients_have_the_energy_of_the_noise(
    trust: str,
) -> None:
    entry = quick("fedhypevae", precondition=0, encoder="trained", rounds=8, latent=4)
    trial, data, algorithm = one_cell(entry, epsilon=0.02, clients=2, trust=trust)
    kept: list[Any] = []
    for _ in train(
        algorithm,
        local_pool(trial, data),
        trial.plan,
        Seeds(0),
        checkpoint=lambda capture: kept.append(capture()),
    ):
        pass
    signal = {name: value for name, value in kept[-1].tensors.items() if "adam.signal." in name}
    large = {
        name: float(value.mean())
        for name, value in signal.items()
        if name.endswith(("rows.weight", "encoder.head.weight"))
    }
    assert len(large) == 2
    assert all(0.8 < value < 1.25 for value in large.values())
