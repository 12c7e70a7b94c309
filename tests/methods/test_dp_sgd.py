"""How DP-SGD follows the signal in its noise."""

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from broken.tiny import Prototypes
from cells import one_cell, quick
from torch import Tensor

from fedsim.seeds import Seeds
from fedsim.training.rounds import restored, to_the_end, train
from fedsim.training.trial import local_pool


def energies(epsilon: float, **keys: Any) -> dict[str, Tensor]:
    """Mean squares of the gradients in units of their noise, by parameter, after a short training on two clients."""
    trial, data, algorithm = one_cell(
        quick("fedhypevae", precondition=0, encoder="corrected", rounds=8, latent=4, **keys.pop("params", {})),
        epsilon=epsilon,
        clients=2,
        **keys,
    )
    kept: list[Any] = []
    for _ in train(algorithm, local_pool(trial, data), trial.plan, Seeds(0), checkpoint=lambda capture: kept.append(capture())):
        pass
    return {name: value for name, value in kept[-1].tensors.items() if "adam.signal." in name}


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_gradients_that_are_all_noise_have_the_energy_of_the_noise_that_was_added(trust: str) -> None:
    signal = energies(0.02, trust=trust)
    large = {name: float(value.mean()) for name, value in signal.items() if name.endswith(("rows.weight", "encoder.head.weight"))}
    assert len(large) == 2
    assert all(0.8 < value < 1.25 for value in large.values())


def test_what_is_not_noised_is_all_signal() -> None:
    assert not energies(math.inf)
    shared = energies(4.0, params={"noised": "shared"})
    assert shared
    assert not any(name.startswith("clients") for name in shared)


def test_noise_alone_hardly_moves_a_parameter() -> None:
    moved = {}
    for follow in (True, False):
        trial, data, algorithm = one_cell(
            quick("fedhypevae", precondition=0, encoder="corrected", rounds=8, follow_signal=follow), epsilon=0.02, clients=2
        )
        pool: Any = local_pool(trial, data)
        for _ in train(algorithm, pool, trial.plan, Seeds(0)):
            pass
        weight = pool.cohorts[0].clients.model.encoder.head.weight
        moved[follow] = float(torch.linalg.vector_norm(weight.detach()))
    assert moved[True] < 0.3 * moved[False]


def test_what_is_released_of_codes_is_their_mean_over_the_averaged_rounds() -> None:
    trial, data, algorithm = one_cell(quick("fedhypevae", precondition=0, rounds=6, average_from=0.5), epsilon=4.0)
    pool = local_pool(replace(trial, sizes=(4,)), data)
    (cohort,) = pool.cohorts  # type: ignore[attr-defined]
    seen = []
    for _ in train(algorithm, pool, trial.plan, Seeds(0)):
        seen.append(cohort.clients.model.code.weight.detach().clone())
    assert not torch.equal(seen[-1], seen[-2])
    torch.testing.assert_close(cohort.released(["code.weight"])["code.weight"], torch.stack(seen[3:]).mean(0))


def test_the_server_averages_its_iterates_over_the_same_rounds() -> None:
    trial, data, algorithm = one_cell(quick("fedhypevae", precondition=0, rounds=6, average_from=0.5), epsilon=4.0)
    _, end = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    assert end.state["server.tensors.average_count"] == 3


def test_a_generator_has_the_mean_of_the_iterates_as_its_model_when_made_and_when_restored() -> None:
    trial, data, algorithm = one_cell({"name": "broken.tiny:Tiny", "params": {"rounds": 6}}, epsilon=4.0)
    _, end = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    again, _ = restored(algorithm, end.state, trial.plan, Seeds(0))
    mean = end.state["server.tensors.average.prototypes.weight"].T + end.state["server.tensors.average.prototypes.bias"]
    for made in (end.made, again):
        torch.testing.assert_close(cast(Prototypes, made).rows, mean)


@pytest.mark.parametrize("epsilon", [4.0, math.inf])
def test_the_norms_of_noise_and_signal_are_recorded(epsilon: float) -> None:
    trial, data, algorithm = one_cell(quick("fedhypevae", precondition=0), epsilon=epsilon)
    numbers = sum(value.numel() for value in algorithm.broadcast(algorithm.initial_server(Seeds(0))).values())
    records, _ = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    assert trial.plan is not None
    for record in records:
        assert record.values["noise_norm"] == pytest.approx(trial.plan.noise_std("dp-sgd") * numbers**0.5, rel=0.05)
        assert record.values["signal_norm"] > 0


@pytest.mark.parametrize(("clip", "clipped"), [(1e-9, 1.0), (1e9, 0.0)])
def test_the_share_of_clipped_gradients_is_recorded(clip: float, clipped: float) -> None:
    trial, data, algorithm = one_cell(quick("fedhypevae", precondition=0, clip=clip), epsilon=4.0)
    broadcast = algorithm.broadcast(algorithm.initial_server(Seeds(0)))
    (message,) = local_pool(replace(trial, sizes=(4,)), data).round(next(algorithm.schedule()), broadcast)
    fractions: Any = message.diagnostics["clipped_fraction"]
    assert len(fractions) > 0
    assert set(fractions.tolist()) == {clipped}


def test_coordinates_are_released_first_and_counted() -> None:
    trial, data, algorithm = one_cell(quick("fedhypevae"), epsilon=4.0)
    records, trained = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    assert trial.plan is not None
    assert [record.values["release"] for record in records] == ["mean", "spread", "dp-sgd", "dp-sgd", "dp-sgd"]
    assert {release.name: release.steps for release in trial.plan.releases} == {"mean": 1, "spread": 1, "dp-sgd": 3}
    assert trained.ledger.epsilon(trial.plan.delta)[0] == pytest.approx(trial.plan.epsilon_reached, rel=1e-6)


def test_coordinates_of_clients_as_units_are_released_and_counted() -> None:
    trial, _, _ = one_cell(quick("fedhypevae"), epsilon=4.0, unit="client")
    assert trial.plan is not None
    assert [release.name for release in trial.plan.releases] == ["mean", "spread", "dp-sgd"]
