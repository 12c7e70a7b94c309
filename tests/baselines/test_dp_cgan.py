"""The GAN's own mathematics."""

from typing import Any

import torch

from baselines.dp_cgan import DPCGAN, DPCGANParams
from fedsim.methods.messages import Task
from fedsim.seeds import Seeds

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


def test_without_noise_the_generator_moves_towards_the_classes() -> None:
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(600) % CLASSES
    x = 0.05 * torch.randn(600, DIM, generator=stream)
    x[torch.arange(600), y] += 1.0
    algorithm = small(rounds=400, clip=1.0, expected_batch=600, average_from=0.5)
    server = algorithm.initial_server(Seeds(0))

    def distance() -> float:
        made = algorithm.generator(server).sample(y, torch.Generator().manual_seed(1))
        return max(float((made[y == label].mean(0) - x[y == label].mean(0)).norm()) for label in range(CLASSES))

    start = distance()
    for round_ in algorithm.schedule():
        model = server.model
        names = [name for name, _ in model.named_parameters() if name.startswith("discriminator.")]
        loss = torch.nn.functional.softplus(-model.discriminator(x, y)).sum()
        sums = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        algorithm.server_step(server, round_, dict(zip(names, sums, strict=True)))
    assert distance() < 0.5 * start
