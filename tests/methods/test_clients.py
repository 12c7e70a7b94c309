"""The clients' noise and samples: whose stream they come from, and what noise is added to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from streams import seeded
from torch import Tensor

from fedsim.methods.clients import NUMBERS_AT_ONCE, Clients, joined
from fedsim.privacy.noise import Noise, gaussian
from fedsim.privacy.plan import PrivacyPlan, Release, Trust
from fedsim.seeds import Purpose, Seeds

RELEASE = Release("sum", 0.1, 5)
MEMBERS = (1, 4, 5, 9)
ROUND = 3
STD = 6.0
Shapes = dict[str, tuple[int, ...]]
SENT: Shapes = {
    "w": (30, 20),
    "b": (3,),
}
KEPT: dict[str, Shapes] = {
    "few": {
        "code": (2,),
        "scale": (),
    },
    "more than a block": {
        "encoder": (NUMBERS_AT_ONCE // 2, 3),
        "code": (2,),
    },
    "nothing": {},
}


class Doubled:
    """Coordinates that are twice the embeddings."""

    def of_rows(self, x: Tensor) -> Tensor:
        return 2 * x

    def rows(self, r: Tensor) -> Tensor:
        return r / 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Doubled)

    __hash__ = None  # type: ignore[assignment]


def plan_of(
    release: Release,
    sigma: float,
    clip: float,
    trust: Trust,
) -> PrivacyPlan:
    """Return the plan of a single release for an example."""
    return PrivacyPlan(
        epsilon_target=4.0,
        delta=1e-5,
        unit="example",
        trust=trust,
        scope="joint",
        claim="proved",
        accountant="rdp",
        sigma=sigma,
        releases=(release,),
        clip=clip,
        sensitivity=clip,
        epsilon_reached=4.0,
    )


def clients(
    examples: int = 0,
    trust: Trust | None = None,
) -> Clients:
    """Return clients of ``examples`` rows each, with a plan if there is a ``trust``."""
    plan = None
    if trust is not None:
        plan = plan_of(
            RELEASE,
            sigma=STD / 2,
            clip=2.0,
            trust=trust,
        )
    return Clients(
        MEMBERS,
        (torch.zeros(examples, 1),) * len(MEMBERS),
        (torch.zeros(examples),) * len(MEMBERS),
        Seeds(0),
        plan,
        torch.nn.Module(),
    )


def noise_of_members(shapes: Shapes) -> list[Noise]:
    noise = []
    for client in MEMBERS:
        stream = Seeds(0).keystream(
            Purpose.NOISE,
            ROUND,
            client,
        )
        noise.append(gaussian(shapes, STD, stream))
    return noise


def sums_and_slices(kept: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return sums over the members, and tensors with one slice per member."""
    stream = seeded(0)
    sums = {
        name: torch.randn(
            shape,
            generator=stream,
            dtype=torch.float64,
        )
        for name, shape in SENT.items()
    }
    slices = {
        name: torch.randn(
            len(MEMBERS),
            *shape,
            generator=stream,
        )
        for name, shape in KEPT[kept].items()
    }
    return sums, slices


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("trust", ["silo", "aggregate"])
def test_each_client_adds_noise_of_its_own_stream(trust: Trust, kept: str) -> None:
    sums, slices = sums_and_slices(kept)
    cohort = clients(trust=trust)
    noised = cohort.add_noise(
        RELEASE,
        ROUND,
        sums,
        slices,
    )
    noisy = KEPT[kept]
    if trust == "silo":
        noisy = SENT | noisy
    noise_of_all = noise_of_members(noisy)
    draws = [noise.parts for noise in noise_of_all]
    for name, value in noised.kept.items():
        noise = torch.stack([parts[name] for parts in draws])
        assert torch.equal(value, slices[name] + noise)
    for name, value in noised.sent.items():
        expected = sums[name]
        if trust == "silo":
            # Sums are rounded once their noise is added, and not before.
            expected = expected + sum(parts[name] for parts in draws)
            expected = expected.float()
        assert torch.equal(value, expected)
    assert noised.sent.keys() == SENT.keys()
    assert noised.kept.keys() == KEPT[kept].keys()
    assert cohort.ran.noise == sum(noise.fingerprint for noise in noise_of_all)


def test_noise_leaves_its_arguments_as_they_were() -> None:
    sums, slices = sums_and_slices("few")
    arguments = sums | slices
    before = {name: value.clone() for name, value in arguments.items()}
    clients(trust="silo").add_noise(
        RELEASE,
        ROUND,
        sums,
        slices,
    )
    for name, value in arguments.items():
        assert torch.equal(value, before[name])


def test_steps_of_a_round_have_different_noise() -> None:
    cohort = clients(trust="silo")
    sent = {"b": torch.zeros(3)}
    one = cohort.add_noise(RELEASE, 4, sent).sent["b"]
    two = cohort.add_noise(RELEASE, 5, sent).sent["b"]
    assert (one != two).all()


@pytest.mark.parametrize("step", [3, 4, 6])
def test_noise_of_another_round_or_drawn_before_is_refused(step: int) -> None:
    cohort = replace(
        clients(trust="silo"),
        steps=range(4, 6),
    )
    sent = {"b": torch.zeros(3)}
    cohort.add_noise(RELEASE, 4, sent)
    expected = rf"step {step} is not in the round \(steps 4 \.\. 5\), or its noise was drawn before"
    with pytest.raises(ValueError, match=expected):
        cohort.add_noise(replace(RELEASE, name="another"), step, sent)


@pytest.mark.parametrize("client_rate", [1.0, 0.5])
def test_examples_are_sampled_independently_in_each_round(client_rate: float) -> None:
    cohort = clients(examples=3)
    rounds = 1000
    inside = np.zeros((rounds, len(MEMBERS), 3))
    for number in range(rounds):
        samples = cohort.poisson(number, 0.5, client_rate)
        for position, chosen in enumerate(samples):
            inside[number, position, chosen.numpy()] = 1
    tolerance = 5 / rounds**0.5
    assert np.abs(inside.mean(0) - 0.5 * client_rate).max() < tolerance / 2
    coins = inside.reshape(rounds, -1)
    if client_rate < 1:
        # Examples of one client share the coin of their client.
        coins = inside[:, :, 0]
    consecutive = np.concatenate([coins[1:], coins[:-1]], 1)
    correlations = np.corrcoef(consecutive, rowvar=False)
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < tolerance


@pytest.mark.parametrize("dim", [16, 5])
def test_converted_embeddings_are_in_memory_once(dim: int) -> None:
    x = tuple(torch.randn(rows, dim) for rows in (7, 0, 3, 5))
    original = replace(
        clients(),
        x=x,
        y=tuple(torch.zeros(len(rows)) for rows in x),
    )
    converted = original.in_coordinates(Doubled())
    for part, rows in zip(converted.x, x, strict=True):
        assert torch.equal(part, 2 * rows)
    pooled = converted.pooled.x
    assert isinstance(pooled, Tensor)
    assert torch.equal(pooled, 2 * torch.cat(x))
    assert pooled.data_ptr() == converted.x[0].data_ptr()
    assert original.in_coordinates(Doubled()) is converted


def test_parts_in_another_order_are_copied() -> None:
    first, second = torch.arange(8.0).split(4)
    assert joined([second, first]).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
