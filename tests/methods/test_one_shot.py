from collections.abc import Mapping

import pytest
import torch

from fedsim.methods.messages import Round, Server, Task, Tensors
from fedsim.methods.one_shot import Statistic, overall_mean, statistic_phase
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import PrivacyPlan, Trust
from fedsim.seeds import Purpose, Seeds

CLIENTS = 4


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_receive_gets_the_noise_deviation_in_units_of_each_sum(clip: float, trust: Trust) -> None:
    """Nothing is sent but noise; what is received has its size, the weights divided out."""
    received: dict[str, Tensors | Mapping[str, float]] = {}

    def receive(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        received.update(sums=sums, std=std)

    statistic = Statistic(
        "both", 1.0, {"large": 1.0, "small": 0.1}, lambda rows, broadcast: {}, receive
    )
    phase = statistic_phase(statistic, clip, Task(3, 2, CLIENTS, trust=trust), lambda server: {})
    plan = PrivacyPlan(
        2.0,
        1e-4,
        "example",
        trust,
        "joint",
        "proved",
        "rdp",
        3.0,
        (phase.release,),
        clip,
        clip,
        2.0,
    )
    server = Server(torch.nn.Module(), Seeds(0), plan=plan)
    shapes = {"large": (40_000,), "small": (40_000,)}
    draws = [
        gaussian(shapes, plan.noise_std("both"), Seeds(0).keystream(Purpose.NOISE, 0, k)).parts
        for k in range(CLIENTS if trust == "silo" else 1)
    ]
    phase.at_server(
        server,
        Round(0, 0, 0, 0, phase.release),
        {name: torch.stack([draw[name] for draw in draws]).sum(0) for name in shapes},
    )
    for name in shapes:
        assert float(received["sums"][name].std()) == pytest.approx(received["std"][name], rel=0.02)
    assert received["std"]["small"] == pytest.approx(10 * received["std"]["large"])


def test_many_steps_share_what_one_step_would_have() -> None:
    phases = [statistic_phase(overall_mean(0.5), 1.0, Task(3, 2, 4), lambda server: {})]
    several = Statistic(
        "em", 0.5, {"a": 1.0}, lambda rows, broadcast: {}, lambda server, sums, std: None, steps=4
    )
    phases.append(statistic_phase(several, 1.0, Task(3, 2, 4), lambda server: {}))
    # the parts' 1 / sigma^2 add up to that of one release of everything
    assert sum(
        phase.release.steps / phase.release.relative_noise**2 for phase in phases
    ) == pytest.approx(1.0)
    assert [phase.release.steps for phase in phases] == [1, 4]
