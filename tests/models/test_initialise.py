from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedsim.models.hypernetwork import ModulatedDecoder
from fedsim.models.layers import ClientCode, initial_model
from fedsim.seeds import Seeds

SEEDS = Seeds(3)


def decoder(clients: int) -> ModulatedDecoder:
    return ModulatedDecoder(2, 3, [64], 6, 2)


def test_weights_have_variance_1_over_fan_in():
    _, last = initial_model(decoder, SEEDS, [0]).modulated()
    deviation = last.rows.weight.detach().std()
    assert float(deviation) == pytest.approx(1 / math.sqrt(64), rel=0.1)


def test_heads_and_biases_are_zero():
    first, _ = initial_model(decoder, SEEDS, [0]).modulated()
    assert not first.rows.bias.any()
    assert not first.scale.weight.any()
    assert not first.shift.weight.any()


class Drawn(nn.Module):
    """A model that draws a parameter and a buffer while it is built."""

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.code = ClientCode(clients, 2)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("features", torch.randn(4, 3))


@pytest.mark.parametrize("name", ["scale", "features"])
def test_draws_while_a_model_is_built_depend_on_the_seed_alone(name):
    server = getattr(initial_model(Drawn, SEEDS), name)
    cohort = getattr(initial_model(Drawn, SEEDS, [0, 3]), name)
    other = getattr(initial_model(Drawn, Seeds(4)), name)
    assert torch.equal(server, cohort)
    assert not torch.equal(server, other)
