"""The clients' noise: whose stream it comes from, and what it is added to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedsim.methods.clients import NUMBERS_AT_ONCE, Clients
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import PrivacyPlan, Release, Trust
from fedsim.seeds import Purpose, Seeds

RELEASE = Release("sum", 0.1, 5)
MEMBERS = (1, 4, 5, 9)
ROUND = 3
STD = 6.0
SENT = {"w": (30, 20), "b": (3,)}
KEPT = {
    "few": {"code": (2,), "scale": ()},
    "more than a block": {"encoder": (NUMBERS_AT_ONCE // 2, 3), "code": (2,)},
    "nothing": {},
}


def clients(trust: Trust) -> Clients:
    plan = PrivacyPlan(
        4.0, 1e-5, "example", trust, "joint", "proved", "rdp", 3.0, (RELEASE,), 2.0, 2.0, 4.0
    )
    assert plan.noise_std(RELEASE.name) == STD
    none = tuple(torch.zeros(0, 1) for _ in MEMBERS)
    return Clients(MEMBERS, none, none, Seeds(0), plan, torch.nn.Module())


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("trust", ["silo", "aggregate"])
def test_each_client_adds_noise_of_its_own_stream(trust: Trust, kept: str) -> None:
    stream = torch.Generator().manual_seed(0)
    sent = {
        name: torch.randn(shape, generator=stream, dtype=torch.float64)
        for name, shape in SENT.items()
    }
    held = {
        name: torch.randn(len(MEMBERS), *shape, generator=stream)
        for name, shape in KEPT[kept].items()
    }
    given = {name: value.clone() for name, value in (sent | held).items()}
    own = clients(trust)
    noised = own.add_noise(RELEASE, ROUND, sent, held)
    draws = [
        gaussian(
            (SENT if trust == "silo" else {}) | KEPT[kept],
            STD,
            Seeds(0).keystream(Purpose.NOISE, ROUND, client),
        )
        for client in MEMBERS
    ]
    for name, value in noised.sent.items():
        # rounded once the noise is there, and not before
        if trust == "silo":
            expected_sum = (sent[name] + sum(draw.parts[name] for draw in draws)).float()
        else:
            expected_sum = sent[name]
        assert torch.equal(value, expected_sum)
    for name, value in noised.kept.items():
        assert torch.equal(
            value,
            torch.stack(
                [value + draw.parts[name] for value, draw in zip(held[name], draws, strict=True)]
            ),
        )
    assert (noised.sent.keys(), noised.kept.keys()) == (SENT.keys(), KEPT[kept].keys())
    assert own.ran.noise == sum(draw.fingerprint for draw in draws)
    assert all(torch.equal(value, given[name]) for name, value in (sent | held).items()), (
        "what was given is left as it was"
    )


def test_no_noise_is_drawn_twice_nor_for_a_step_of_another_round() -> None:
    own = replace(clients("silo"), steps=range(4, 6))
    sent = {"b": torch.zeros(3)}
    one, two = (own.add_noise(RELEASE, number, sent).sent["b"] for number in (4, 5))
    assert (one != two).all()
    for number in (4, 5, 3, 6):
        with pytest.raises(
            ValueError,
            match=rf"step {number} is not in the round \(steps 4 \.\. 5\), or its noise was "
            r"drawn before",
        ):
            own.add_noise(replace(RELEASE, name="another"), number, sent)


def of_rows(count: int) -> Clients:
    """So many rows a member, and no plan."""
    return Clients(
        MEMBERS,
        (torch.zeros(count, 1),) * len(MEMBERS),
        (torch.zeros(count),) * len(MEMBERS),
        Seeds(0),
        None,
        torch.nn.Module(),
    )


@pytest.mark.parametrize("client_rate", [1.0, 0.5])
def test_each_example_is_sampled_independently_in_each_round(
    client_rate: float,
) -> None:
    own = of_rows(3)
    rounds = 1000
    inside = np.zeros((rounds, len(MEMBERS), 3))
    for number in range(rounds):
        for position, chosen in enumerate(own.poisson(number, 0.5, client_rate)):
            inside[number, position, chosen.numpy()] = 1
    few = 5 / rounds**0.5
    assert np.abs(inside.mean(0) - 0.5 * client_rate).max() < few / 2
    if client_rate < 1:
        coins = inside[:, :, 0]
    else:
        coins = inside.reshape(rounds, -1)
    related = np.corrcoef(np.concatenate([coins[1:], coins[:-1]], 1), rowvar=False) - np.eye(
        2 * coins.shape[1]
    )
    assert np.abs(related).max() < few
