from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.models.layers import ClientCode, initial_model
from fedsim.seeds import Seeds

SEEDS = Seeds(3)


def test_weights_have_variance_one_over_fan_in_and_heads_and_biases_are_zero():
    first, last = initial_model(
        lambda clients: ModulatedDecoder(2, 3, [64], 6, 2), SEEDS, [0]
    ).modulated()
    assert float(last.rows.weight.detach().std()) == pytest.approx(1 / math.sqrt(64), rel=0.1)
    assert not first.rows.bias.any()
    assert not first.scale.weight.any()
    assert not first.shift.weight.any()


class Drawn(nn.Module):
    """Draws a parameter and a buffer as it is built, neither of which has weights to set."""

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.code = ClientCode(clients, 2)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("features", torch.randn(4, 3))


def test_what_a_model_draws_as_it_is_built_is_the_seeds_whoever_builds_it():
    server = initial_model(Drawn, SEEDS)
    cohort = initial_model(Drawn, SEEDS, [0, 3])
    other = initial_model(Drawn, Seeds(4))
    assert torch.equal(server.scale, cohort.scale)
    assert torch.equal(server.features, cohort.features)
    assert not torch.equal(server.scale, other.scale)
    assert not torch.equal(server.features, other.features)
