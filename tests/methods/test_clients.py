"""The clients' noise: whose stream it comes from, and what it is added to."""

from __future__ import annotations

import pytest
import torch

from fedsim.methods.clients import BLOCK, Clients
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import PrivacyPlan, Release, Trust
from fedsim.seeds import Seeds

RELEASE = Release("sum", 0.1, 5)
MEMBERS, ROUND, STD = (1, 4, 5, 9), 3, 6.0
SENT = {"w": (3, 2), "b": (3,)}
KEPT = {"few": {"code": (2,), "scale": ()}, "more than a block": {"encoder": (BLOCK // 2, 3), "code": (2,)}, "nothing": {}}


def clients(trust: Trust) -> Clients:
    plan = PrivacyPlan(4.0, 1e-5, "example", trust, "joint", "proved", "rdp", 3.0, (RELEASE,), 2.0, 2.0, 4.0)
    assert plan.noise_std(RELEASE.name) == STD
    none = tuple(torch.zeros(0, 1) for _ in MEMBERS)
    return Clients(MEMBERS, none, none, Seeds(0), plan, torch.nn.Module())


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("trust", ["silo", "aggregate"])
def test_every_client_adds_one_draw_of_its_own_stream_to_all_that_it_releases(trust: Trust, kept: str) -> None:
    stream = torch.Generator().manual_seed(0)
    sent = {name: torch.randn(shape, generator=stream) for name, shape in SENT.items()}
    held = {name: torch.randn(len(MEMBERS), *shape, generator=stream) for name, shape in KEPT[kept].items()}
    given = {name: value.clone() for name, value in (sent | held).items()}
    own = clients(trust)
    noised = own.add_noise(RELEASE, ROUND, sent, held)
    draws = [gaussian((SENT if trust == "silo" else {}) | KEPT[kept], STD, Seeds(0).noise(ROUND, client)) for client in MEMBERS]
    for name, value in noised.sent.items():
        torch.testing.assert_close(value, sent[name] + sum(draw.parts.get(name, torch.zeros(())) for draw in draws))
    for name, value in noised.kept.items():
        assert torch.equal(value, torch.stack([value + draw.parts[name] for value, draw in zip(held[name], draws, strict=True)]))
    assert (noised.sent.keys(), noised.kept.keys()) == (SENT.keys(), KEPT[kept].keys())
    assert own.ran.noise == sum(draw.fingerprint for draw in draws)
    assert all(torch.equal(value, given[name]) for name, value in (sent | held).items()), "what was given is left as it was"
