"""What holds for all registered algorithms beside what ``fedsim check`` looks at (see ``tests/evidence/check``)."""

from dataclasses import replace

import pytest
import torch
from cells import SHIPPED, one_cell, small_cells

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.judge import judgement_of
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import RoundRecord
from fedsim.training.trial import Outcome, Trial, run_trial

ALGORITHMS = SHIPPED


def run(trial: Trial, data: Embeddings) -> tuple[list[RoundRecord], Outcome]:
    *records, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return records, replace(outcome, seconds=0.0)


def test_the_same_seed_gives_the_same_row_scores_included_and_another_seed_another() -> None:
    trial, data, _ = one_cell("dp-gaussian", epsilon=4.0)
    first, again = run(trial, data), run(trial, data)
    assert first == again
    assert judgement_of(trial, first[1].state, data) == judgement_of(trial, again[1].state, data)
    other, *_ = one_cell("dp-gaussian", seeds=1, epsilon=4.0)
    assert run(other, data) != first
    assert judgement_of(other, run(other, data)[1].state, data) != judgement_of(trial, first[1].state, data)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if lookup(name).private])
def test_a_finite_epsilon_adds_noise_in_every_round_and_an_infinite_one_in_none(name: str) -> None:
    for epsilon in (4.0, float("inf")):
        trial, data, _ = one_cell(name, epsilon=epsilon)
        assert {record.values["noise"] == 0 for record in run(trial, data)[0]} == {epsilon == float("inf")}


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if "clip" in lookup(name).Params.model_fields])
def test_a_clip_norm_that_bounds_nothing_is_refused_in_a_line_where_noise_is_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=r"(?s)clip.*inf is not a (positive, )?finite number"):
        small_cells({"name": name, "params": {"clip": float("inf")}}, epsilon=1.0)


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
