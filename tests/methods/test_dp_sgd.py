"""DP-SGD estimates the energy of gradients that are nothing but noise, and bounds its samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import one_cell, quick

from fedsim.methods.messages import Task
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import train
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_pure_noise_gradients_have_the_energy_of_the_noise(trust: str) -> None:
    entry = quick("fedhypevae", precondition=0, encoder="trained", rounds=8, latent=4)
    trial, data, algorithm = one_cell(
        entry,
        epsilon=0.02,
        clients=2,
        trust=trust,
    )
    checkpoints: list[Any] = []
    rounds = train(
        algorithm,
        local_pool(trial, data),
        trial.plan,
        Seeds(0),
        checkpoint=lambda capture, is_last: checkpoints.append(capture().kept()),
    )
    list(rounds)
    energies = [
        float(value.mean())
        for name, value in checkpoints[-1].tensors.items()
        if "adam.signal." in name and name.endswith(("rows.weight", "encoder.head.weight"))
    ]
    assert len(energies) == 2
    assert min(energies) > 0.8
    assert max(energies) < 1.25


def planned_rate(trial: Trial) -> float:
    """Return the sample rate of the noisy steps in a cell's plan."""
    assert trial.plan is not None
    return trial.plan.mechanism("dp-sgd").sample_rate


def large_set(folder: Path, rows: int) -> dict[str, Any]:
    """Return a made-up data set with this number of training examples."""
    stream = np.random.default_rng(0)
    total = rows + 10
    x = stream.standard_normal((total, 2), dtype=np.float32)
    split = np.zeros(total, np.int8)
    split[rows:] = 2
    path = folder / f"{rows}.npz"
    np.savez(path, x=x, y=np.arange(total) % 2, split=split)
    return {"npz": str(path)}


@pytest.mark.parametrize("rows", [18_000, 18_001])
def test_sample_rate_of_a_large_set_ignores_one_example(tmp_path: Path, rows: int) -> None:
    entry = quick("fedhypevae", most_sampled=1024)
    trial, _, _ = one_cell(entry, epsilon=4.0, dataset=large_set(tmp_path, rows))
    assert trial.task.public_size == 16_384
    assert planned_rate(trial) == 1024 / 16_384


def test_small_set_is_sampled_at_the_given_rate() -> None:
    trial, _, _ = one_cell(quick("fedhypevae", sample_rate=0.3), epsilon=4.0)
    assert trial.task.public_size == 128
    assert planned_rate(trial) == 0.3


def test_client_unit_ignores_the_largest_sample() -> None:
    params = {"client_rate": 0.5, "most_sampled": 1}
    trial, _, algorithm = one_cell(quick("fedhypevae", **params), epsilon=4.0, unit="client")
    assert planned_rate(trial) == 0.5
    assert algorithm.sample_rate() == 0.2


def test_ledger_counts_the_bounded_rate() -> None:
    trial, data, _ = one_cell(quick("fedhypevae", most_sampled=8), epsilon=4.0)
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    assert outcome.unaccounted == ""
    assert outcome.mechanisms is not None
    rates = {ran.sample_rate for ran in outcome.mechanisms if ran.release == "dp-sgd"}
    assert rates == {8 / 128}


@pytest.mark.parametrize("name", ["dp-linear", "dp-feature-covariance"])
def test_linear_method_takes_all_of_100_000_examples(name: str) -> None:
    algorithm = build_algorithm(name, {}, Task(8, 3, 4, public_size=2**16))
    assert algorithm.sample_rate() == 1
