"""What every registered algorithm must keep, whatever its mathematics."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import quick, small_cells

from fedsim.algorithm import Progress, RoundRecord, Trained
from fedsim.data.embeddings import Embeddings
from fedsim.registry import known, lookup
from fedsim.runtime.checkpoint import Checkpoints
from fedsim.runtime.cohort import build_algorithm
from fedsim.runtime.trial import Outcome, Trial, local_pool, run_trial
from fedsim.seeds import Seeds

ALGORITHMS = known()
PRIVATE = [name for name in ALGORITHMS if lookup(name).private]
SETTINGS = [
    pytest.param(name, unit, trust, id=f"{name}-{unit}-{trust}")
    for name in PRIVATE
    for unit in lookup(name).units
    for trust in lookup(name).trusts
]


def one_cell(name: str | dict[str, Any], **keys: Any) -> tuple[Trial, Embeddings]:
    prepared = small_cells(name, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    return trial, data


def run(trial: Trial, data: Embeddings) -> tuple[list[RoundRecord], Outcome]:
    *records, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return records, replace(outcome, seconds=0.0)


def train(trial: Trial, data: Embeddings, resume: Progress | None = None) -> tuple[list[RoundRecord], Trained, list[Progress]]:
    """All rounds, and the progress after each."""
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
    progress: list[Progress] = []
    pool = local_pool(trial, data)
    steps = algorithm.train(pool, trial.plan, Seeds(trial.cell.seed), resume, lambda capture: progress.append(capture()))
    records = []
    while True:
        try:
            records.append(next(steps))
        except StopIteration as end:
            return records, end.value, progress


def sample(trained: Trained) -> torch.Tensor:
    return trained.made.sample(torch.arange(10), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_seed_gives_the_same_row_and_another_seed_another(name: str) -> None:
    trial, data = one_cell(name)
    first, again = run(trial, data), run(trial, data)
    assert first == again
    other, _ = one_cell(name, seeds=1)
    assert run(other, data)[0] != first[0]


@pytest.mark.parametrize(("name", "unit", "trust"), SETTINGS)
def test_what_was_spent_is_at_most_what_was_planned_and_not_far_below(name: str, unit: str, trust: str) -> None:
    trial, data = one_cell(name, unit=unit, trust=trust)
    records, outcome = run(trial, data)
    assert trial.plan is not None
    assert outcome.epsilon_spent is not None
    assert len(records) == sum(release.rounds for release in trial.plan.releases)
    assert 0.99 * 4.0 <= outcome.epsilon_spent <= 4.0
    assert outcome.epsilon_spent == pytest.approx(trial.plan.epsilon_reached, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in PRIVATE])
def test_without_privacy_nothing_is_noised_nor_accounted(name: str) -> None:
    trial, data = one_cell(name)
    records, outcome = run(trial, data)
    assert trial.plan is None
    assert (outcome.epsilon_spent, outcome.accountant) == (None, None)
    assert all(record.values["noise_norm"] == 0 for record in records)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_infinite_epsilon_adds_no_noise(name: str) -> None:
    trial, data = one_cell(name, epsilon=float("inf"))
    assert all(record.values["noise_norm"] == 0 for record in run(trial, data)[0])


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_packing_onto_actors_does_not_matter(name: str, trust: str) -> None:
    if trust not in lookup(name).trusts:
        pytest.skip(f"{name} knows no trust {trust}")
    trial, data = one_cell(name, trust=trust)
    one, reference, (*_, end) = train(trial, data)
    for sizes in ((1, 2, 1), (3, 1)):
        records, trained, (*_, progress) = train(replace(trial, sizes=sizes), data)
        for expected, record in zip(one, records, strict=True):
            assert (record.values["sampled"], record.values["noise"]) == (expected.values["sampled"], expected.values["noise"])
        assert trained.ledger == reference.ledger
        assert trained.uplink_bytes == reference.uplink_bytes
        assert progress.tensors.keys() == end.tensors.keys()
        for key, value in end.tensors.items():
            torch.testing.assert_close(progress.tensors[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_leaves_the_global_random_numbers_alone(name: str) -> None:
    trial, data = one_cell(name)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global state is what is looked at)
    random.seed(1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    run(trial, data)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("name", [name for name in PRIVATE if "silo" in lookup(name).trusts])
def test_the_noise_of_any_two_clients_and_rounds_differs(name: str) -> None:
    trial, data = one_cell(name, trust="silo")
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
    pool = local_pool(replace(trial, sizes=(1, 1, 1, 1)), data)
    server = algorithm.initial_server(Seeds(trial.cell.seed))
    prints = []
    for round_, release in algorithm.schedule():
        messages = pool.round(round_, release, algorithm.broadcast(server))
        prints += [message.noise for message in messages]
        total = {key: sum(message.sums[key] for message in messages) for key in messages[0].sums}
        algorithm.server_step(server, round_, release, total)
    assert len(prints) >= 8
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", PRIVATE)
def test_the_noise_on_the_sum_differs_between_rounds_and_seeds(name: str) -> None:
    prepared = small_cells(name, epsilon=4.0, seeds=[0, 1])
    (data,) = prepared.data.values()
    prints = [record.values["noise"] for trial in prepared.trials for record in run(trial, data)[0]]
    assert len(set(prints)) == len(prints)


def test_every_algorithm_and_epsilon_of_a_seed_sees_the_same_partition() -> None:
    prepared = small_cells(*ALGORITHMS, epsilon=[1.0, float("inf")], seeds=[0, 1])
    by_seed: dict[int, set[str]] = {}
    for trial in prepared.trials:
        by_seed.setdefault(trial.cell.seed, set()).add(trial.partition.fingerprint)
    assert {seed: len(prints) for seed, prints in by_seed.items()} == {0: 1, 1: 1}
    assert by_seed[0] != by_seed[1]


def test_what_two_algorithms_share_starts_from_the_same_weights() -> None:
    prepared = small_cells("fedavg-cvae", "weight-noise", "fedhypevae", epsilon=4.0)
    starts = []
    for trial in prepared.trials:
        algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
        starts.append(algorithm.initial_server(Seeds(0)).model.state_dict())
    plain, noisy, hyper = starts
    assert all(torch.equal(plain[key], noisy[key]) for key in plain)
    shared = [key for key in hyper if key in plain and hyper[key].shape == plain[key].shape and key.startswith("decoder.")]
    assert shared
    assert all(torch.equal(plain[key], hyper[key]) for key in shared)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_going_on_from_a_checkpoint_equals_an_uninterrupted_training(name: str, tmp_path: Path) -> None:
    trial, data = one_cell(name)
    records, trained, progress = train(trial, data)
    for after, at in enumerate(progress, 1):
        file = Checkpoints(tmp_path / "cell.safetensors")
        file.save(at)
        rest, resumed, _ = train(replace(trial, sizes=(3, 1)), data, file.load())
        _, same, _ = train(trial, data, file.load())
        assert [record.round for record in rest] == list(range(after, len(records)))
        assert resumed.ledger == same.ledger == trained.ledger
        assert resumed.uplink_bytes == same.uplink_bytes == trained.uplink_bytes
        assert torch.equal(sample(same), sample(trained))
        torch.testing.assert_close(sample(resumed), sample(trained), atol=1e-4, rtol=1e-4)


def test_a_warm_start_goes_on_from_any_of_its_releases() -> None:
    trial, data = one_cell(quick("fedhypevae", warm_start="moments", encoder="posterior", class_maps=True))
    _, trained, progress = train(trial, data)
    for at in progress:
        assert torch.equal(sample(train(trial, data, at)[1]), sample(trained))
