"""How DP-SGD follows the signal in its noise."""

from typing import Any

import pytest
from cells import one_cell, quick
from torch import Tensor

from fedsim.seeds import Seeds
from fedsim.training.rounds import train
from fedsim.training.trial import local_pool


def energies(epsilon: float, **keys: Any) -> dict[str, Tensor]:
    """Mean squares of the gradients in units of their noise, by parameter, after a short training on two clients."""
    trial, data, algorithm = one_cell(
        quick("fedhypevae", precondition=0, encoder="trained", rounds=8, latent=4, **keys.pop("params", {})),
        epsilon=epsilon,
        clients=2,
        **keys,
    )
    kept: list[Any] = []
    for _ in train(algorithm, local_pool(trial, data), trial.plan, Seeds(0), checkpoint=lambda capture: kept.append(capture())):
        pass
    return {name: value for name, value in kept[-1].tensors.items() if "adam.signal." in name}


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_gradients_that_are_all_noise_have_the_energy_of_the_noise_that_was_added(trust: str) -> None:
    signal = energies(0.02, trust=trust)
    large = {name: float(value.mean()) for name, value in signal.items() if name.endswith(("rows.weight", "encoder.head.weight"))}
    assert len(large) == 2
    assert all(0.8 < value < 1.25 for value in large.values())
