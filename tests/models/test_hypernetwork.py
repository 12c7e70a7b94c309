"""A modulated layer is the plain layer with generated weights, and its penalty a Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import seeded
from torch import Tensor, nn

from fedsim.models.hypernetwork import ConditionalPrior, ModulatedLinear

LATENT = 3
CLASSES = 4
DIM = 6
CODE = 2
ROWS = 5


def randomised(module: Any, seed: int = 0) -> Any:
    """Return the module away from the zero heads with which it starts."""
    stream = seeded(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=stream)
    return module


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def generated(
    layer: Any,
    code: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the weights and biases that the layer stands for at one code."""
    scale = 1 + layer.scale.weight @ code
    shift = layer.shift.weight @ code
    return scale[:, None] * layer.rows.weight, scale * layer.rows.bias + shift


def test_modulated_layer_is_the_plain_layer_with_generated_weights() -> None:
    layer = randomised(ModulatedLinear(LATENT, DIM, CODE))
    h = draw(ROWS, 2, LATENT)
    codes = draw(ROWS, CODE, seed=2)
    outputs = layer(h, codes)
    for output, inputs, code in zip(outputs, h, codes, strict=True):
        assert torch.allclose(output, F.linear(inputs, *generated(layer, code)), atol=1e-5)


def squared_jacobian(
    outputs: Callable[[Tensor], Any],
    code: Tensor,
) -> Tensor:
    jacobians = torch.func.jacrev(outputs)(code)
    return sum(jacobian.square().sum() for jacobian in jacobians)


@pytest.mark.parametrize("seed", range(3))
def test_penalty_of_a_layer_is_its_squared_jacobian(seed: int) -> None:
    layer = randomised(ModulatedLinear(LATENT, DIM, CODE), seed)
    expected = squared_jacobian(
        lambda code: generated(layer, code),
        draw(CODE, seed=seed),
    )
    assert torch.allclose(layer.lipschitz(), expected, rtol=1e-5)


@pytest.mark.parametrize(("latent", "full"), [(LATENT, False), (LATENT, True), (1, True)])
def test_penalty_of_the_prior_is_the_squared_jacobian_over_all_classes(
    latent: int, full: bool
) -> None:
    prior = randomised(ConditionalPrior(latent, CLASSES, CODE, full))
    with torch.no_grad():
        # Inside the clamp the Jacobian is that of the linear map.
        prior.log_var.weight *= 0.1

    def parameters(code: Tensor) -> tuple[Tensor, ...]:
        mean, root = prior(torch.arange(CLASSES), code.expand(CLASSES, -1))
        diagonal = torch.diagonal(root, dim1=1, dim2=2)
        return mean, -2 * diagonal.log(), root.tril(-1)

    expected = squared_jacobian(parameters, 1e-3 * draw(CODE))
    assert torch.allclose(prior.lipschitz(), expected, rtol=1e-5)
