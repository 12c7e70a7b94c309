from __future__ import annotations

import pytest
import torch

from fedsim.methods.optimise import adam_step, average_step, by_client, by_input, signal_shares


def test_it_is_torchs_adam():
    stream = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=stream)
    mine, theirs, state = {"w": start.clone()}, start.clone().requires_grad_(True), {}
    optimiser = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.9))
    for _ in range(5):
        gradient = torch.randn(4, 3, generator=stream)
        theirs.grad = gradient.clone()
        optimiser.step()
        adam_step(mine, {"w": gradient.clone()}, state, 0.1, betas=(0.8, 0.9))
    assert torch.allclose(mine["w"], theirs.detach(), atol=1e-6)


def test_the_average_is_the_mean_of_what_it_saw():
    state = {}
    for value in (1.0, 2.0, 6.0):
        average_step({"w": torch.full((2,), value)}, state)
    assert torch.allclose(state["average.w"], torch.full((2,), 3.0))


def test_a_share_of_a_step_is_that_part_of_the_way():
    stream = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(4, 3, generator=stream), torch.randn(4, 3, generator=stream)
    whole, part, share = {"w": start.clone()}, {"w": start.clone()}, torch.tensor([[0.0, 0.5, 1.0]])
    adam_step(whole, {"w": gradient}, {}, 0.1)
    adam_step(part, {"w": gradient}, {}, 0.1, shares={"w": share})
    assert torch.allclose(part["w"] - start, share * (whole["w"] - start), atol=1e-7)


def test_the_share_of_signal_is_the_root_of_what_its_energy_is_of_the_whole():
    stream = torch.Generator().manual_seed(0)
    noise, state = 0.2, {}
    signal = noise * torch.tensor([[0.0, 1.0, 3.0]])
    for _ in range(20):
        noisy = signal + noise * torch.randn(20_000, 3, generator=stream)
        shares = signal_shares({"w": noisy, "free": noisy}, {"w": noise, "free": 0.0}, state, by_input)
    assert torch.allclose(shares["w"], torch.tensor([[0.0, 0.5**0.5, 0.9**0.5]]), atol=0.06)
    assert shares["free"] == 1
    assert state.keys() == {"adam.signal.w"}


def test_every_client_has_a_share_of_its_own():
    noisy = torch.stack([torch.full((5, 2), 0.1), torch.full((5, 2), 2.0)])
    shares = signal_shares({"w": noisy}, {"w": 1.0}, {}, by_client)
    assert shares["w"].flatten().tolist() == pytest.approx([0, 0.75**0.5])
