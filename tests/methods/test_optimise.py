from __future__ import annotations

import torch
from streams import seeded

from fedsim.methods.parameters import signal_shares


def test_signal_share_is_root_of_its_share_of_energy():
    stream = seeded(0)
    noise = 0.2
    state = {}
    signal = noise * torch.tensor([[0.0, 1.0, 3.0]])
    for _ in range(20):
        noisy = signal + noise * torch.randn(20_000, 3, generator=stream)
        shares = signal_shares(
            {"w": noisy, "free": noisy}, {"w": noise, "free": 0.0}, state, by_client=False
        )
    assert torch.allclose(shares["w"], torch.tensor([[0.0, 0.5**0.5, 0.9**0.5]]), atol=0.06)
    assert shares["free"] == 1
    assert state.keys() == {"adam.signal.w"}
