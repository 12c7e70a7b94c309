"""Statistics are received with the noise that they got, and share the budget of one release."""

from collections.abc import Mapping

import pytest
import torch

from fedsim.methods.messages import Round, Server, Task, Tensors
from fedsim.methods.one_shot import Statistic, overall_mean, statistic_phase
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import Trust
from fedsim.seeds import Purpose, Seeds
from tests.methods.test_clients import plan_of

CLIENTS = 4
NUMBERS = 40_000


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_receive_gets_the_noise_deviation_in_units_of_each_sum(clip: float, trust: Trust) -> None:
    """Nothing but noise is sent; its weights are divided out before it is received."""
    received: list[tuple[Tensors, Mapping[str, float]]] = []
    statistic = Statistic(
        "both",
        1.0,
        {"large": 1.0, "small": 0.1},
        lambda rows, broadcast: {},
        lambda server, sums, std: received.append((sums, std)),
    )
    task = Task(3, 2, CLIENTS, trust=trust)
    phase = statistic_phase(statistic, clip, task, lambda server: {})
    plan = plan_of(
        phase.release,
        sigma=3.0,
        clip=clip,
        trust=trust,
    )
    server = Server(torch.nn.Module(), Seeds(0), plan=plan)
    shapes = {"large": (NUMBERS,), "small": (NUMBERS,)}
    noise = {name: torch.zeros(NUMBERS) for name in shapes}
    senders = CLIENTS if trust == "silo" else 1
    for client in range(senders):
        stream = Seeds(0).keystream(Purpose.NOISE, 0, client)
        draw = gaussian(shapes, plan.noise_std("both"), stream)
        for name, part in draw.parts.items():
            noise[name] += part
    phase.at_server(
        server,
        Round(0, 0, 0, 0, phase.release),
        noise,
    )
    assert not noise
    ((sums, std),) = received
    for name, value in sums.items():
        assert float(value.std()) == pytest.approx(std[name], rel=0.02)
    assert std["small"] == pytest.approx(10 * std["large"])


def precision(statistic: Statistic) -> float:
    """Return the 1 / sigma^2 of all steps of a statistic together."""
    phase = statistic_phase(
        statistic,
        1.0,
        Task(3, 2, CLIENTS),
        lambda server: {},
    )
    return phase.release.steps / phase.release.relative_noise**2


def test_steps_divide_the_share_of_their_statistic() -> None:
    several = Statistic(
        "em",
        0.5,
        {"a": 1.0},
        lambda rows, broadcast: {},
        lambda server, sums, std: None,
        steps=4,
    )
    assert precision(several) == pytest.approx(0.5)
    assert precision(overall_mean(0.5)) == pytest.approx(0.5)
