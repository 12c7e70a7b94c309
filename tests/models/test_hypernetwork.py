from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedsim.models.hypernetwork import ConditionalPrior, ModulatedLinear

LATENT = 3
CLASSES = 4
DIM = 6
CODE = 2
ROWS = 5


def random_(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Away from the zero heads that it starts with."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    return module


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generated(layer: ModulatedLinear, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and biases that the layer stands for at one code, as its docstring writes
    them.
    """
    scale = 1 + layer.scale.weight @ code
    return scale[:, None] * layer.rows.weight, scale * layer.rows.bias + layer.shift.weight @ code


def test_a_modulated_layer_is_the_plain_layer_with_generated_weights():
    layer = random_(ModulatedLinear(LATENT, DIM, CODE))
    h = draw(ROWS, 2, LATENT)
    codes = draw(ROWS, CODE, seed=2)
    found = layer(h, codes)
    for row in range(ROWS):
        assert torch.allclose(
            found[row], F.linear(h[row], *generated(layer, codes[row])), atol=1e-5
        )


def squared_jacobian(outputs, code: torch.Tensor) -> torch.Tensor:
    return sum(part.square().sum() for part in torch.func.jacrev(outputs)(code))


@pytest.mark.parametrize("seed", range(3))
def test_a_layers_lipschitz_penalty_is_its_squared_jacobian(seed):
    layer = random_(ModulatedLinear(LATENT, DIM, CODE), seed)
    code = draw(CODE, seed=seed)
    right = squared_jacobian(lambda v: generated(layer, v), code)
    assert torch.allclose(layer.lipschitz(), right, rtol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_the_priors_penalty_is_the_squared_jacobian_over_all_classes(full):
    prior = random_(ConditionalPrior(LATENT, CLASSES, CODE, full))
    code = 1e-3 * draw(CODE)
    with torch.no_grad():
        prior.log_var.weight *= (
            0.1  # inside the clamp, where the Jacobian is that of the linear map
        )

    def parameters(v):
        mean, root = prior(torch.arange(CLASSES), v.expand(CLASSES, -1))
        return mean, -2 * torch.diagonal(root, dim1=1, dim2=2).log(), root.tril(-1)

    right = squared_jacobian(parameters, code)
    assert torch.allclose(prior.lipschitz(), right, rtol=1e-5)
