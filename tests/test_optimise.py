from __future__ import annotations

import pytest
import torch

from fedsim.optimise import adam_step, average_step


@pytest.mark.parametrize("divisor", [1, 8])
def test_it_is_torchs_adam(divisor):
    stream = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=stream)
    mine, theirs, state = {"w": start.clone()}, start.clone().requires_grad_(True), {}
    optimiser = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9))
    for _ in range(5):
        gradient = torch.randn(4, 3, generator=stream)
        theirs.grad = gradient / divisor
        optimiser.step()
        adam_step(mine, {"w": gradient.clone()}, state, 0.1, betas=(0.8, 0.9), divisor=divisor)
    assert torch.allclose(mine["w"], theirs.detach(), atol=1e-6)


def test_the_state_goes_on_from_a_copy():
    gradients = [{"w": torch.full((2,), float(i))} for i in range(4)]
    through, state = {"w": torch.zeros(2)}, {}
    for gradient in gradients:
        adam_step(through, gradient, state, 0.1)
    halves, first = {"w": torch.zeros(2)}, {}
    for gradient in gradients[:2]:
        adam_step(halves, gradient, first, 0.1)
    second = {name: value.clone() for name, value in first.items()}
    for gradient in gradients[2:]:
        adam_step(halves, gradient, second, 0.1)
    assert torch.equal(through["w"], halves["w"])


def test_the_average_is_the_mean_of_what_it_saw():
    state = {}
    for value in (1.0, 2.0, 6.0):
        average_step({"w": torch.full((2,), value)}, state)
    assert torch.allclose(state["average.w"], torch.full((2,), 3.0))
