"""The GAN's own mathematics."""

from typing import Any

import torch

from baselines.dp_cgan import DPCGAN, DPCGANParams
from fedsim.methods import Seeds, Task

DIM, CLASSES = 8, 3


def small(**params: object) -> DPCGAN:
    return DPCGAN(DPCGANParams.model_validate({"latent": 2, "discriminator_hidden": [16], "fakes": 60, **params}), Task(DIM, CLASSES, 1))


def test_the_server_moves_the_discriminator_by_penalties_and_the_generator_by_steps_of_its_own() -> None:
    algorithm = small()
    server = algorithm.initial_server(Seeds(0))
    before = {name: p.detach().clone() for name, p in server.model.named_parameters()}
    parts = algorithm.public_terms(server.model, torch.Generator().manual_seed(0))
    found = torch.autograd.grad(sum(parts.values()), list(server.model.parameters()), allow_unused=True)
    moved = {name for name, gradient in zip(before, found, strict=True) if gradient is not None}
    assert moved == {name for name in before if name.startswith("discriminator.")}
    first, *_ = algorithm.schedule()
    total = {name: torch.zeros_like(p) for name, p in before.items() if name.startswith("discriminator.")}
    algorithm.server_step(server, first, total)
    assert all(
        not torch.equal(p, before[name]) for name, p in server.model.named_parameters() if name != "generator.decoder.layers.0.rows.x"
    )


def test_public_terms_are_the_loss_on_generated_rows_and_the_squared_slope_there() -> None:
    algorithm = small(gradient_penalty=0.3)
    model: Any = algorithm.initial_server(Seeds(0)).model
    found = algorithm.public_terms(model, torch.Generator().manual_seed(0))
    labels = torch.arange(60) % CLASSES
    made = model.generator(labels, torch.Generator().manual_seed(0)).detach()
    slopes = torch.func.vmap(torch.func.grad(lambda x, y: model.discriminator(x[None], y[None])[0]))(made, labels)
    torch.testing.assert_close(found["gradient_penalty"], 0.3 * slopes.norm(dim=1).square().mean())
    real = torch.sigmoid(model.discriminator(made, labels))
    torch.testing.assert_close(found["fake"], -(1 - real).log().mean())
