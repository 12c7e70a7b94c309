"""What every shipped algorithm keeps, looked at in one training of two rounds each; its own
mathematics has a file of its own.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from cells import SHIPPED, one_cell, quick, small_cells
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.products import is_classifier
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, build_algorithm
from fedsim.training.rounds import RoundRecord, Trained, restored, to_the_end, train
from fedsim.training.state import Checkpoint
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

EPSILON = 4.0
PRIVATE = [name for name in SHIPPED if lookup(name).private]


@dataclass(frozen=True)
class Training:
    """One training, what it told its clients, and its progress after the first round."""

    trial: Trial
    data: Embeddings
    algorithm: Algorithm
    records: list[RoundRecord]
    trained: Trained
    told: list[tuple[Round, Tensors]]
    progress: list[Checkpoint]


def entry(name: str) -> dict[str, Any]:
    return quick(name, **({"rounds": 2} if "rounds" in lookup(name).Params.model_fields else {}))


@cache
def training(name: str) -> Training:
    trial, data, algorithm = one_cell(
        entry(name), epsilon=EPSILON, resources={"clients_per_actor": "all"}
    )
    return run(trial, data, algorithm)


def run(
    trial: Trial, data: Embeddings, algorithm: Algorithm, resume: Checkpoint | None = None
) -> Training:
    told = list[tuple[Round, Tensors]]()
    progress = list[Checkpoint]()
    pool = local_pool(trial, data)
    compute = pool.round

    def noted(round_: Round, broadcast: Tensors) -> list[Message]:
        told.append((round_, {name: value.clone() for name, value in broadcast.items()}))
        return compute(round_, broadcast)

    pool.round = noted  # type: ignore[method-assign]
    steps = train(
        algorithm,
        pool,
        trial.plan,
        Seeds(0),
        resume,
        checkpoint=lambda capture: progress.append(capture()),
    )
    return Training(trial, data, algorithm, *to_the_end(steps), told, progress)


def answered(found: Training, made: Any) -> Tensor:
    labels = torch.arange(20) % found.trial.task.classes
    x = torch.from_numpy(found.data.x_test[:20])
    if is_classifier(made):
        said = made.probabilities(x)
    else:
        said = made.sample(labels, torch.Generator().manual_seed(0))
    assert said.shape == (
        20,
        found.trial.task.classes if is_classifier(made) else found.trial.task.dim,
    )
    assert said.isfinite().all()
    return said


@pytest.mark.parametrize("name", SHIPPED)
def test_its_product_answers_and_is_the_same_made_again_from_what_is_kept(name: str) -> None:
    found = training(name)
    again, _ = restored(found.algorithm, found.trained.state, found.trial.plan, Seeds(0))
    assert torch.equal(answered(found, found.trained.made), answered(found, again))


@pytest.mark.parametrize("name", SHIPPED)
def test_exactly_what_is_planned_runs_is_noised_in_every_round_and_is_spent(name: str) -> None:
    found = training(name)
    plan = found.trial.plan
    ledger = found.trained.ledger
    assert {record.values["noise"] == 0 for record in found.records} == {plan is None}
    if plan is None:
        assert ledger.mechanisms() == ()
    else:
        assert ledger.unaccounted(plan, found.trial.cell.clients) == ""
        assert ledger.epsilon(plan.delta)[0] == pytest.approx(plan.epsilon_reached, rel=1e-6)
        assert 0.99 * EPSILON <= plan.epsilon_reached <= EPSILON


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resumed_training_and_one_on_several_actors_end_as_the_whole_one(name: str) -> None:
    found = training(name)
    resumed = run(found.trial, found.data, found.algorithm, found.progress[0]).trained
    apart = run(replace(found.trial, sizes=(1, 3)), found.data, found.algorithm).trained
    assert resumed.ledger == apart.ledger == found.trained.ledger
    for key, value in found.trained.state.items():
        assert torch.equal(resumed.state[key], value), key
        torch.testing.assert_close(apart.state[key], value, rtol=1e-3, atol=1e-4, msg=key)


def sums_of(found: Training, client: int, kept: slice) -> list[Tensors]:
    """The clients' sums of every round, of new clients that hear what was told, one of whom has
    some of its rows alone.
    """
    rows = list(found.trial.partition.rows)
    rows[client] = rows[client][kept]
    sums = []
    for round_, broadcast in found.told:
        (spec,) = replace(
            found.trial, partition=replace(found.trial.partition, rows=tuple(rows))
        ).cohorts()
        sums.append(
            Cohort(spec, found.data.x_train, found.data.y_train).round(round_, broadcast).sums
        )
    return sums


@pytest.mark.parametrize("name", PRIVATE)
def test_a_row_moves_the_sums_by_the_sensitivity_at_most_and_a_client_without_rows_is_one_still(
    name: str,
) -> None:
    found = training(name)
    assert found.trial.plan is not None
    if not found.algorithm.noise_at_clients():
        for one, other in zip(
            sums_of(found, 1, slice(None)), sums_of(found, 1, slice(None, -1)), strict=True
        ):
            change = torch.cat(
                [(one[part].double() - other[part].double()).flatten() for part in one]
            ).norm()
            assert change <= found.trial.plan.sensitivity * (1 + 1e-5)
    assert all(
        value.isfinite().all() for sums in sums_of(found, 0, slice(0)) for value in sums.values()
    )


@pytest.mark.parametrize("name", PRIVATE)
def test_an_infinite_epsilon_adds_no_noise(name: str) -> None:
    trial, data, algorithm = one_cell(entry(name), epsilon=float("inf"))
    assert (
        next(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0))).values["noise"] == 0
    )


@pytest.mark.parametrize(
    "name", [name for name in SHIPPED if "clip" in lookup(name).Params.model_fields]
)
def test_a_clip_norm_that_bounds_nothing_is_refused_in_a_line_where_noise_is_asked_for(
    name: str,
) -> None:
    with pytest.raises(UserError, match=r"(?s)clip.*finite number"):
        small_cells({"name": name, "params": {"clip": float("inf")}}, epsilon=1.0)


def test_the_same_seed_gives_the_same_row_scores_included_and_another_seed_another() -> None:
    def row(seed: int) -> tuple[Any, Any]:
        trial, data, _ = one_cell("dp-gaussian", seeds=seed, epsilon=4.0)
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        return replace(outcome, seconds=0.0), evaluate_cell(trial, outcome.state, data)

    first = row(0)
    again = row(0)
    other = row(1)
    assert first == again
    assert first[1] != other[1]


def test_algorithms_and_epsilons_of_a_seed_share_partition_and_initial_weights() -> None:
    names = ("fedavg-cvae", "weight-noise", "fedhypevae")
    by_seed: dict[int, set[str]] = {}
    starts: dict[str, Any] = {}
    for trial in small_cells(*names, epsilon=[1.0, float("inf")], seeds=[0, 1]).trials:
        by_seed.setdefault(trial.cell.seed, set()).add(trial.partition.fingerprint)
        algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
        starts[trial.cell.algorithm] = algorithm.initial_server(Seeds(0)).model.state_dict()
    assert [len(prints) for prints in by_seed.values()] == [1, 1]
    assert by_seed[0] != by_seed[1]
    plain, noisy, hyper = (starts[name] for name in names)
    assert all(torch.equal(plain[key], noisy[key]) for key in plain)
    shared = [
        key
        for key in hyper
        if key in plain and hyper[key].shape == plain[key].shape and key.startswith("decoder.")
    ]
    assert shared
    assert all(torch.equal(plain[key], hyper[key]) for key in shared)
