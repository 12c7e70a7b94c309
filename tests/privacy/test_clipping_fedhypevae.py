from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cells import crossed
from clipping_cases import difference, joint_norm, loop, single_gradients
from torch import Tensor, nn

from algorithms.fedhypevae import FedHypeVAE
from fedsim.batch import Batch, Layout, consecutive
from fedsim.methods.messages import Task
from fedsim.methods.per_example import check_per_example
from fedsim.models.initialise import initial_model
from fedsim.models.kernel import kernel
from fedsim.privacy.clipping import ENGINES, Norms, clipped_sum
from fedsim.seeds import Seeds

COUNTS, DIM, CLASSES = (4, 0, 1, 5), 12, 3
ROWS = sum(COUNTS)


VARIANTS = {
    "the paper's form": {"encoder_hidden": (6,)},
    "hidden layers": {"encoder": "trained", "decoder_hidden": (6,), "encoder_hidden": (6,)},
    "exact posterior": {"encoder": "posterior"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def algorithm(request: pytest.FixtureRequest) -> FedHypeVAE:
    params = FedHypeVAE.Params(latent=3, kernel=0.5, **request.param)
    return FedHypeVAE(params, Task(DIM, CLASSES, len(COUNTS)))


@pytest.fixture(scope="module")
def model(algorithm: FedHypeVAE) -> nn.Module:
    """Away from the start, where the hypernetwork's heads are zero and some gradients vanish."""
    built = initial_model(algorithm.build, Seeds(0), range(len(COUNTS)))
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=stream)
    return built


@pytest.fixture(scope="module")
def batch(algorithm: FedHypeVAE) -> Batch:
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, DIM, generator=stream)
    return Batch(
        x / x.norm(dim=1, keepdim=True),
        torch.randint(CLASSES, (ROWS,), generator=stream),
        {name: torch.randn(ROWS, *shape, generator=stream) for name, shape in algorithm.draws().items()},
        Layout(torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)), len(COUNTS)),
        consecutive(torch.cat([100 * client + torch.arange(count) // 2 for client, count in enumerate(COUNTS)]), x),
    )


@pytest.fixture(scope="module")
def loss(algorithm: FedHypeVAE):
    def total(model: nn.Module, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values())).sum(0)

    return total


def bites(algorithm: FedHypeVAE, model: nn.Module, loss, batch: Batch) -> Norms:
    """The algorithm's own weights, with C at the median so that half of the examples are clipped."""
    measured = clipped_sum(model, loss, batch, algorithm.norms(model)).norms
    return replace(algorithm.norms(model), clip=float(measured.median()))


def test_the_loss_has_all_its_parts_and_reaches_every_parameter(algorithm, model, loss, batch):
    assert algorithm.loss(model, batch).keys() == {"reconstruction", "kl", "kernel"}
    sums = clipped_sum(model, loss, batch, algorithm.norms(model)).sums
    assert all(value.any() for value in sums.values())
    encoder = set() if algorithm.params.encoder == "posterior" else {"encoder"}
    assert {name.split(".")[0] for name in sums} == encoder | {"code", "decoder", "prior", "observation"}


@pytest.mark.parametrize(
    ("unit", "engine"), crossed(lambda unit, engine: engine == "bookkeeping" or unit == "group", ["example", "group", "client"], ENGINES)
)
def test_the_clipped_sum_is_that_of_a_loop(algorithm, model, loss, batch, unit, engine):
    norms = replace(bites(algorithm, model, loss, batch), unit=unit)
    assert difference(clipped_sum(model, loss, batch, norms, engine).sums, loop(model, loss, batch, norms)) < 1e-5


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
def test_leaving_an_example_out_changes_the_sum_by_its_own_clipped_norm(algorithm, model, loss, batch, engine):
    norms = bites(algorithm, model, loss, batch)
    whole = clipped_sum(model, loss, batch, norms, engine).sums
    gradients = single_gradients(model, loss, batch)
    changes = []
    for index, gradient in enumerate(gradients):
        without = clipped_sum(model, loss, batch.without(index), norms, engine).sums
        change = joint_norm({name: whole[name] - without[name] for name in whole})
        own = joint_norm({name: norms.weight(name) * value for name, value in gradient.items()})
        assert change == pytest.approx(min(norms.clip, own), rel=1e-4)
        changes.append(change)
    assert max(changes) <= norms.clip * (1 + 1e-5)
    assert min(changes) < 0.99 * norms.clip


def test_leaving_a_client_out_changes_the_sum_by_at_most_c(algorithm, model, loss, batch):
    norms = replace(bites(algorithm, model, loss, batch), unit="client")
    whole = clipped_sum(model, loss, batch, norms).sums
    for client in range(len(COUNTS)):
        rest = batch
        for index in reversed((batch.layout.client == client).nonzero().flatten().tolist()):
            rest = rest.without(index)
        sums = clipped_sum(model, loss, rest, norms).sums
        change = joint_norm({name: whole[name] - sums[name] for name in whole})
        assert change <= norms.clip * (1 + 1e-5)
        assert (change > 0) == (COUNTS[client] > 0)


def test_the_check_passes_the_algorithms_loss(algorithm, model, loss, batch):
    check_per_example(model, loss, batch, algorithm.norms(model))


def batch_mmd(model, batch: Batch) -> Tensor:
    """MMD^2 between the batch and as many generated rows, shared out over the examples: not per example."""
    code = model.code(batch.layout)
    made = model.generate(code, batch.y, batch.draws["prior"], batch.draws["observation"])[:, 0]

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return kernel((a[:, None] - b[None]).square().sum(-1)).mean()

    return (mean(made, made) - 2 * mean(batch.x, made)).expand(len(batch))


def test_a_batch_level_mmd_breaks_the_bound_and_the_check_says_so(algorithm, model, batch):
    measured = clipped_sum(model, batch_mmd, batch, algorithm.norms(model)).norms
    norms = replace(algorithm.norms(model), clip=float(measured.min()))
    whole = clipped_sum(model, batch_mmd, batch, norms).sums
    changes = []
    for index in range(len(batch)):
        without = clipped_sum(model, batch_mmd, batch.without(index), norms).sums
        changes.append(joint_norm({name: whole[name] - without[name] for name in whole}))
    assert max(changes) > 1.05 * norms.clip
    with pytest.raises(ValueError, match="not per example"):
        check_per_example(model, batch_mmd, batch, algorithm.norms(model))


def test_the_check_sees_rows_in_another_order(algorithm, model, loss, batch):
    """Every gradient is some example's own, but one layer's rows belong to other examples than another's."""

    def turned(model, b: Batch) -> Tensor:
        return loss(model, b) + model.observation(b.x.flip(0)).squeeze(1) * b.x.flip(0)[:, 0] * 100

    with pytest.raises(ValueError, match="not per example"):
        check_per_example(model, turned, batch, algorithm.norms(model))
