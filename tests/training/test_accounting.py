"""A result's ε is what the harness counted, not what a plug-in says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from broken.tiny import Spelled, Tiny
from cells import one_cell, quick
from rows import joined, outcome_of

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, RoundTrace, Server, Step, Tensors, Values
from fedsim.methods.parameters import add_in_order
from fedsim.plugins.registry import register
from fedsim.seeds import Seeds
from fedsim.training import rounds as training_rounds
from fedsim.training.rounds import server_noise, train
from fedsim.training.trial import Outcome, local_pool


@register("test-forgets-the-noise")
class ForgetsTheNoise(Spelled):
    """Sends its sums as they are, and a message without a step, as a method that is not private
    would.
    """

    def noise_at_clients(self) -> bool:
        return True

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return Noised(sums, {})


@register("test-takes-the-next-rounds-noise")
class TakesTheNextRoundsNoise(Spelled):
    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return clients.add_noise(round_.release, round_.stream + 1, sums)


@register("test-stops-early")
class StopsEarly(Tiny):
    """Says that it runs more rounds than it runs."""

    def schedule(self) -> Any:
        yield from list(super().schedule())[:-1]


@register("test-claims-another-rate")
class ClaimsAnotherRate(Tiny):
    """Runs its steps under a sample rate of its own."""

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        release = replace(round_.release, sample_rate=1.0)
        return super().client_round(clients, replace(round_, release=release), broadcast)


@register("test-forges-its-message")
class ForgesItsMessage(ForgetsTheNoise):
    """Says that the planned step ran, with its noise."""

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        assert clients.plan is not None
        mechanism = clients.plan.mechanism(round_.release.name).times(1)
        step = Step(mechanism, round_.stream, clients.members, False)
        message = super().client_round(clients, round_, broadcast)
        return replace(message, ran=RoundTrace([step]))


@register("test-records-as-the-harness")
class RecordsAsTheHarness(Tiny):
    """Returns a number of the server under a name of the harness."""

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        return {**super().server_step(server, round_, total), "noise_norm": 1.0}


def outcome(name: str) -> Outcome:
    trial, data, _ = one_cell(quick(name), epsilon=1.0)
    return outcome_of(trial, data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test-forgets-the-noise", "0 steps of 'dp-sgd' in the ledger, but the plan has 3"),
        ("test-stops-early", "2 steps of 'dp-sgd' in the ledger, but the plan has 3"),
        ("test-claims-another-rate", "at rate 1 ran"),
        ("test-forges-its-message", "0 steps of 'dp-sgd' in the ledger, but the plan has 3"),
    ],
)
def test_plan_does_not_pay_for_steps_that_did_not_run(name: str, message: str) -> None:
    assert message in outcome(name).unaccounted


def test_plan_that_its_budget_does_not_pay_for_is_overspent() -> None:
    trial, data, _ = one_cell(quick("broken.tiny:Tiny"), epsilon=1.0)
    assert trial.plan is not None
    plan = replace(trial.plan, sigma=0.9 * trial.plan.sigma)
    trial = replace(trial, plan=plan)
    outcome = outcome_of(trial, data)
    assert outcome.unaccounted == ""
    assert outcome.epsilon_spent is not None
    assert outcome.epsilon_spent > 1.1
    assert joined(trial, outcome).status == "overspent"


def test_noise_of_another_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 1 is not in the round \(steps 0 \.\. 0\)"):
        outcome("test-takes-the-next-rounds-noise")


def test_names_of_the_harness_are_refused_for_diagnostics() -> None:
    with pytest.raises(ValueError, match="'noise_norm', a name under which fedsim itself records"):
        outcome("test-records-as-the-harness")


@pytest.mark.parametrize("name", ["dp-gaussian", "weight-noise"])
def test_sum_is_rounded_after_its_noise_is_added(name: str) -> None:
    trial, data, algorithm = one_cell(quick(name), epsilon=4.0)
    seeds = Seeds(0)
    seen: list[Tensors] = []
    steps = train(
        algorithm,
        local_pool(trial, data),
        trial.plan,
        seeds,
        watch=lambda round_, noisy: seen.append(noisy),
    )
    next(steps)
    round_ = next(algorithm.schedule())
    server = algorithm.initial_server(seeds.public)
    messages = local_pool(trial, data).round(round_, algorithm.broadcast(server))
    sums = add_in_order([message.sums for message in messages])
    noise, _ = server_noise(algorithm, trial.plan, round_, sums, seeds)
    for part, value in sums.items():
        assert value.dtype == torch.float64
        assert torch.equal(seen[0][part], (value + noise.parts[part]).float())


def test_noise_of_many_numbers_is_added_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    together = outcome("dp-gaussian").state
    monkeypatch.setattr(training_rounds, "NUMBERS_AT_ONCE", 7)
    for name, value in outcome("dp-gaussian").state.items():
        assert torch.equal(value, together[name])
