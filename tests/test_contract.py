"""Every shipped algorithm keeps its contract, in one training of two rounds each."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from cells import SHIPPED, one_cell, quick, small_cells
from streams import seeded
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.products import is_classifier
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort
from fedsim.training.rounds import RoundRecord, Trained, restored, to_the_end, train
from fedsim.training.state import Checkpoint
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

EPSILON = 4.0
PRIVATE = [name for name in SHIPPED if lookup(name).private]
every_method = pytest.mark.parametrize("name", SHIPPED)
every_private_method = pytest.mark.parametrize("name", PRIVATE)


@dataclass(frozen=True)
class Training:
    """One training, its broadcasts to the clients, and a checkpoint after every round."""

    trial: Trial
    data: Embeddings
    algorithm: Algorithm
    records: list[RoundRecord]
    trained: Trained
    broadcasts: list[tuple[Round, Tensors]]
    checkpoints: list[Checkpoint]


def entry(name: str) -> dict[str, Any]:
    """Return the entry of an algorithm in a grid, with two rounds if it has rounds."""
    if "rounds" in lookup(name).Params.model_fields:
        return quick(name, rounds=2)
    return quick(name)


@cache
def training(name: str) -> Training:
    """Train an algorithm, all clients on one actor."""
    return run(
        *one_cell(
            entry(name),
            epsilon=EPSILON,
            resources={"clients_per_actor": "all"},
        )
    )


def run(
    trial: Trial, data: Embeddings, algorithm: Algorithm, resume: Checkpoint | None = None
) -> Training:
    """Train an algorithm from its start or from a checkpoint."""
    broadcasts = list[tuple[Round, Tensors]]()
    checkpoints = list[Checkpoint]()
    pool = local_pool(trial, data)
    compute = pool.round

    def noted(round_: Round, broadcast: Tensors) -> list[Message]:
        broadcasts.append((round_, {name: value.clone() for name, value in broadcast.items()}))
        return compute(round_, broadcast)

    def keep(capture: Callable[[], Checkpoint], is_last: bool) -> None:
        checkpoints.append(capture().kept())

    pool.round = noted  # type: ignore[method-assign]
    steps = train(
        algorithm,
        pool,
        trial.plan,
        Seeds(0),
        resume,
        checkpoint=keep,
    )
    return Training(
        trial,
        data,
        algorithm,
        *to_the_end(steps),
        broadcasts,
        checkpoints,
    )


def answers(found: Training, product: Any) -> Tensor:
    """Return the probabilities of a classifier, or the samples of a generator."""
    task = found.trial.task
    if is_classifier(product):
        values = product.probabilities(torch.from_numpy(found.data.x_test[:20]))
        assert values.shape == (20, task.classes)
    else:
        labels = torch.arange(20) % task.classes
        values = product.sample(labels, seeded(0))
        assert values.shape == (20, task.dim)
    assert values.isfinite().all()
    return values


@every_method
def test_product_is_the_same_when_it_is_made_again(name: str) -> None:
    found = training(name)
    again, _ = restored(
        found.algorithm,
        found.trained.state,
        found.trial.plan,
        Seeds(0),
    )
    assert torch.equal(answers(found, found.trained.made), answers(found, again))


@every_method
def test_training_runs_and_spends_what_is_planned(name: str) -> None:
    found = training(name)
    plan = found.trial.plan
    ledger = found.trained.ledger
    if plan is None:
        assert ledger.mechanisms() == ()
    else:
        assert ledger.unaccounted(plan, found.trial.cell.clients) == ""
        assert ledger.epsilon(plan.delta)[0] == pytest.approx(plan.epsilon_reached, rel=1e-6)
        assert 0.99 * EPSILON <= plan.epsilon_reached <= EPSILON


@every_method
def test_every_round_of_a_private_training_has_noise(name: str) -> None:
    found = training(name)
    for record in found.records:
        assert (record.values["noise"] == 0) == (found.trial.plan is None)


@every_method
def test_resumed_training_ends_as_the_whole_one(name: str) -> None:
    found = training(name)
    resumed = run(
        found.trial,
        found.data,
        found.algorithm,
        found.checkpoints[0],
    ).trained
    assert resumed.ledger == found.trained.ledger
    for key, value in found.trained.state.items():
        assert torch.equal(resumed.state[key], value), key


@every_method
def test_training_on_several_actors_ends_as_on_one(name: str) -> None:
    found = training(name)
    apart = run(
        replace(found.trial, sizes=(1, 3)),
        found.data,
        found.algorithm,
    ).trained
    assert apart.ledger == found.trained.ledger
    torch.testing.assert_close(
        apart.state,
        found.trained.state,
        rtol=1e-3,
        atol=1e-4,
    )


def sums_of(found: Training, client: int, kept: slice) -> list[Tensors]:
    """Return the sums of every round if one client has only a part of its examples."""
    partition = found.trial.partition
    rows = list(partition.rows)
    rows[client] = rows[client][kept]
    trial = replace(found.trial, partition=replace(partition, rows=tuple(rows)))
    sums = []
    for round_, broadcast in found.broadcasts:
        (spec,) = trial.cohorts()
        cohort = Cohort(spec, found.data.x_train, found.data.y_train)
        sums.append(cohort.round(round_, broadcast).sums)
    return sums


@every_private_method
def test_one_example_moves_the_sums_by_at_most_the_sensitivity(name: str) -> None:
    found = training(name)
    assert found.trial.plan is not None
    if found.algorithm.noise_at_clients():
        pytest.skip("the sums of its clients carry noise")
    whole = sums_of(found, 1, slice(None))
    neighbour = sums_of(found, 1, slice(-1))
    for one, other in zip(whole, neighbour, strict=True):
        changes = [(one[part].double() - other[part].double()).flatten() for part in one]
        assert torch.cat(changes).norm() <= found.trial.plan.sensitivity * (1 + 1e-5)


@every_private_method
def test_client_without_examples_sends_finite_sums(name: str) -> None:
    for sums in sums_of(training(name), 0, slice(0)):
        for value in sums.values():
            assert value.isfinite().all()


@every_private_method
def test_infinite_epsilon_adds_no_noise(name: str) -> None:
    trial, data, algorithm = one_cell(entry(name), epsilon=float("inf"))
    first = next(
        train(
            algorithm,
            local_pool(trial, data),
            trial.plan,
            Seeds(0),
        )
    )
    assert first.values["noise"] == 0


@pytest.mark.parametrize(
    "name", [name for name in SHIPPED if "clip" in lookup(name).Params.model_fields]
)
def test_infinite_clip_norm_is_refused_with_noise(name: str) -> None:
    with pytest.raises(UserError, match=r"(?s)clip.*finite number"):
        small_cells({"name": name, "params": {"clip": float("inf")}}, epsilon=1.0)


def test_seed_alone_decides_a_result() -> None:
    def evaluated(seed: int) -> tuple[Any, Any]:
        trial, data, _ = one_cell("dp-gaussian", seeds=seed, epsilon=4.0)
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        return replace(outcome, seconds=0.0), evaluate_cell(
            trial,
            outcome.state,
            data,
        )

    first = evaluated(0)
    assert evaluated(0) == first
    assert evaluated(1)[1] != first[1]


NAMES = ("fedavg-cvae", "weight-noise", "fedhypevae")


def test_algorithms_share_the_initial_weights_of_a_decoder() -> None:
    starts = []
    network: dict[str, Any] = {"latent": 8, "encoder_hidden": [64]}
    same_network = {"fedavg-cvae": network, "weight-noise": network}
    for name in NAMES:
        entry = {"name": name, "params": same_network.get(name, {})}
        *_, algorithm = one_cell(entry, epsilon=float("inf"))
        starts.append(algorithm.initial_server(Seeds(0)).model.state_dict())
    plain, noisy, hyper = starts
    assert all(torch.equal(plain[key], noisy[key]) for key in plain)
    shared = [
        key
        for key in hyper.keys() & plain.keys()
        if hyper[key].shape == plain[key].shape and key.startswith("decoder.")
    ]
    assert shared
    assert all(torch.equal(plain[key], hyper[key]) for key in shared)
