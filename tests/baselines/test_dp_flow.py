"""The rectified flow's own mathematics, and what it learns."""

import math
from functools import partial
from typing import Any

import torch
from cells import small_cells
from rows import ran
from streams import seeded
from torch import Tensor

from baselines.dp_flow import DPFlow, DPFlowParams, FlowGenerator
from fedsim.batch import Layout
from fedsim.methods import Batch, Seeds, Task

DIM = 6
CLASSES = 3
ROWS = 9
DRAWS = 2
LABELS = torch.arange(ROWS) % CLASSES


def small_flow() -> DPFlow:
    params = DPFlowParams(draws=DRAWS, hidden=(8,))
    return DPFlow(params, Task(DIM, CLASSES, 1))


def initial_velocity(flow: DPFlow) -> Any:
    return flow.initial_server(Seeds(0)).model


def drawn_velocity(flow: DPFlow) -> Any:
    """Return a velocity none of whose weights is zero."""
    velocity = flow.build(1)
    random = seeded(0)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return velocity


def velocity_to_mean(flow: DPFlow, mean: Tensor) -> Any:
    """Return the velocity of the flow to N(mean, I)."""
    velocity = initial_velocity(flow)
    with torch.no_grad():
        velocity.last.bias.copy_(mean)
    return velocity


def drawn_batch() -> Batch:
    normal = partial(torch.randn, generator=seeded(1))
    draws = {
        "noise": normal(ROWS, DRAWS, DIM),
        "time": normal(ROWS, DRAWS, 1),
    }
    x = normal(ROWS, DIM) / math.sqrt(DIM)
    clients = torch.zeros(ROWS, dtype=torch.long)
    return Batch(
        x,
        LABELS,
        draws,
        Layout(clients, 1),
    )


def samples(
    velocity: Any,
    labels: Tensor,
    seed: int = 0,
) -> Tensor:
    generator = FlowGenerator(
        velocity,
        DIM,
        steps=20,
    )
    return generator.sample(labels, seeded(seed))


# --- the velocity ---


def test_velocity_of_a_normal_target_is_exact() -> None:
    mean = torch.linspace(-1, 2, DIM)
    velocity = velocity_to_mean(small_flow(), mean)
    x = torch.randn(
        ROWS,
        DIM,
        generator=seeded(0),
    )
    t = torch.linspace(0, 1, ROWS).unsqueeze(1)
    # x_1 - x_0 and x_t = (1 - t) x_0 + t x_1 are jointly normal, so this is their regression.
    slope = (t - (1 - t)) / (t**2 + (1 - t) ** 2)
    expected = mean + slope * (x - t * mean)
    torch.testing.assert_close(velocity(x, t, LABELS), expected)


def test_velocity_starts_without_a_class() -> None:
    velocity = initial_velocity(small_flow())
    x = torch.ones(ROWS, DIM)
    t = torch.full((ROWS, 1), 0.3)
    predicted = velocity(x, t, LABELS)
    torch.testing.assert_close(
        predicted,
        predicted[:1].expand_as(predicted),
    )


# --- the loss ---


def test_loss_is_the_mean_squared_error_on_the_line() -> None:
    flow = small_flow()
    velocity = drawn_velocity(flow)
    batch = drawn_batch()
    (loss,) = flow.loss(velocity, batch).values()
    standard_normal = torch.distributions.Normal(0.0, 1.0)
    ends = math.sqrt(DIM) * batch.x
    errors = []
    for draw in range(DRAWS):
        starts = batch.draws["noise"][:, draw]
        directions = ends - starts
        t = standard_normal.cdf(batch.draws["time"][:, draw])
        predicted = velocity(starts + t * directions, t, LABELS)
        errors.append((predicted - directions).square().mean(1))
    torch.testing.assert_close(loss, torch.stack(errors).mean(0))


def test_leaving_out_an_example_changes_no_other_loss() -> None:
    flow = small_flow()
    velocity = drawn_velocity(flow)
    batch = drawn_batch()
    (whole,) = flow.loss(velocity, batch).values()
    for index in range(ROWS):
        (rest,) = flow.loss(velocity, batch.without(index)).values()
        others = torch.arange(ROWS) != index
        torch.testing.assert_close(rest, whole[others])


# --- the samples ---


def test_samples_are_finite_and_of_the_shape_asked() -> None:
    drawn = samples(drawn_velocity(small_flow()), LABELS)
    assert drawn.shape == (ROWS, DIM)
    assert drawn.isfinite().all()


def test_same_seed_gives_the_same_samples() -> None:
    velocity = drawn_velocity(small_flow())
    drawn = samples(velocity, LABELS)
    again = samples(velocity, LABELS)
    assert torch.equal(drawn, again)


def test_another_seed_gives_other_samples() -> None:
    velocity = drawn_velocity(small_flow())
    drawn = samples(velocity, LABELS)
    others = samples(velocity, LABELS, seed=1)
    assert not torch.equal(drawn, others)


def test_samples_of_a_normal_target_have_its_moments() -> None:
    mean = torch.linspace(-1, 2, DIM)
    velocity = velocity_to_mean(small_flow(), mean)
    labels = torch.zeros(20_000, dtype=torch.long)
    drawn = math.sqrt(DIM) * samples(velocity, labels)
    torch.testing.assert_close(
        drawn.mean(0),
        mean,
        rtol=0,
        atol=0.03,
    )
    torch.testing.assert_close(
        drawn.std(0),
        torch.ones(DIM),
        rtol=0,
        atol=0.03,
    )


# --- what it learns ---


def test_digits_are_told_apart_without_noise() -> None:
    prepared = small_cells(
        {"name": "dp-flow"},
        epsilon=math.inf,
        dataset={"name": "digits", "limit": 1000},
    )
    (trial,) = prepared.trials
    _, evaluation = ran(prepared, trial)
    assert evaluation.scores.balanced_accuracy > 0.85
