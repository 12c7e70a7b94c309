"""The GAN's own mathematics."""

from typing import Any

import torch
from streams import seeded

from baselines.dp_cgan import DPCGAN, DPCGANParams
from fedsim.methods import Seeds, Task

DIM = 8
CLASSES = 3


def test_public_terms_are_the_loss_and_the_slope_on_generated_rows() -> None:
    params = DPCGANParams(
        latent=2,
        discriminator_hidden=(16,),
        fakes=60,
        gradient_penalty=0.3,
    )
    algorithm = DPCGAN(params, Task(DIM, CLASSES, 1))
    model: Any = algorithm.initial_server(Seeds(0)).model
    found = algorithm.public_terms(
        model,
        seeded(0),
    )
    labels = torch.arange(60) % CLASSES
    made = model.generator(labels, seeded(0)).detach()
    slopes = torch.func.vmap(
        torch.func.grad(lambda x, y: model.discriminator(x[None], y[None])[0])
    )(made, labels)
    torch.testing.assert_close(
        found["gradient_penalty"],
        0.3 * slopes.norm(dim=1).square().mean(),
    )
    real = torch.sigmoid(model.discriminator(made, labels))
    torch.testing.assert_close(
        found["fake"],
        -(1 - real).log().mean(),
    )


def test_every_step_generates_rows_of_all_classes() -> None:
    params = DPCGANParams(fakes=4, discriminator_hidden=(8,))
    algorithm = DPCGAN(params, Task(DIM, 10, 1))
    model: Any = algorithm.initial_server(Seeds(0)).model
    seen: list[torch.Tensor] = []
    model.generator.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    algorithm.public_terms(model, seeded(0))
    assert torch.cat(seen).unique().tolist() == list(range(10))
