"""The rectified flow's own mathematics, and what it learns."""

import math
from typing import Any

import torch
from cells import small_cells
from rows import ran
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
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in velocity.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=stream))
    return velocity


def velocity_to_mean(flow: DPFlow, mean: Tensor) -> Any:
    """Return the velocity of the flow to N(mean, I)."""
    velocity = initial_velocity(flow)
    with torch.no_grad():
        velocity.last.bias.copy_(mean)
    return velocity


def drawn_batch() -> Batch:
    stream = torch.Generator().manual_seed(1)
    draws = {
        "noise": torch.randn(ROWS, DRAWS, DIM, generator=stream),
        "time": torch.randn(ROWS, DRAWS, 1, generator=stream),
    }
    x = torch.randn(ROWS, DIM, generator=stream) / math.sqrt(DIM)
    layout = Layout(torch.zeros(ROWS, dtype=torch.long), 1)
    return Batch(x, LABELS, draws, layout)


def samples(velocity: Any, labels: Tensor, seed: int = 0) -> Tensor:
    generator = FlowGenerator(velocity, DIM, steps=20)
    return generator.sample(labels, torch.Generator().manual_seed(seed))


# --- the velocity ---


def test_velocity_of_a_normal_target_is_exact() -> None:
    mean = torch.linspace(-1, 2, DIM)
    velocity = velocity_to_mean(small_flow(), mean)
    x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, ROWS).unsqueeze(1)
    # x_1 - x_0 and x_t = (1 - t) x_0 + t x_1 are jointly normal, so this is their regression.
    slope = (t - (1 - t)) / (t**2 + (1 - t) ** 2)
    expected = mean + slope * (x - t * mean)
    torch.testing.assert_close(velocity(x, t, LABELS), expected)


def test_velocity_starts_without_a_class() -> None:
    velocity = initial_velocity(small_flow())
    x = torch.ones(ROWS, DIM)
    t = torch.full((ROWS, 1), 0.3)
    found = velocity(x, t, LABELS)
    torch.testing.assert_close(found, found[:1].expand_as(found))


# --- the loss ---


def test_loss_is_the_mean_squared_error_on_the_line() -> None:
    flow = small_flow()
    velocity = drawn_velocity(flow)
    batch = drawn_batch()
    (loss,) = flow.loss(velocity, batch).values()
    errors = []
    for draw in range(DRAWS):
        start = batch.draws["noise"][0, draw]
        end = math.sqrt(DIM) * batch.x[0]
        t = torch.distributions.Normal(0.0, 1.0).cdf(batch.draws["time"][0, draw])
        predicted = velocity(start + t * (end - start), t, LABELS[0])
        errors.append(torch.nn.functional.mse_loss(predicted, end - start))
    torch.testing.assert_close(loss[0], torch.stack(errors).mean())


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
    found = samples(drawn_velocity(small_flow()), LABELS)
    assert found.shape == (ROWS, DIM)
    assert found.isfinite().all()


def test_same_seed_gives_the_same_samples() -> None:
    velocity = drawn_velocity(small_flow())
    assert torch.equal(samples(velocity, LABELS), samples(velocity, LABELS))


def test_another_seed_gives_other_samples() -> None:
    velocity = drawn_velocity(small_flow())
    assert not torch.equal(samples(velocity, LABELS), samples(velocity, LABELS, seed=1))


def test_samples_of_a_normal_target_have_its_moments() -> None:
    mean = torch.linspace(-1, 2, DIM)
    velocity = velocity_to_mean(small_flow(), mean)
    found = math.sqrt(DIM) * samples(velocity, torch.zeros(20_000, dtype=torch.long))
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.std(0), torch.ones(DIM), rtol=0, atol=0.03)


# --- what it learns ---


def test_digits_are_told_apart_without_noise() -> None:
    prepared = small_cells(
        {"name": "dp-flow"},
        epsilon=math.inf,
        dataset={"name": "digits", "limit": 1000},
    )
    (trial,) = prepared.trials
    assert ran(prepared, trial)[1].scores.balanced_accuracy > 0.85
