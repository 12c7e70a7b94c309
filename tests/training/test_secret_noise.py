"""Secret noise: every cell has its own, and no release shows whether an example took part."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick, small_cells
from rows import kept

from fedsim.data.embeddings import Embeddings
from fedsim.grid.models import Cell
from fedsim.results.generators import load_generator
from fedsim.training.state import Checkpoints
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial, seeds_of

SECRET = {"noise": "secret"}


def trained(trial: Trial, data: Embeddings, **options: Any) -> tuple[list[int], Outcome]:
    """The fingerprints of the noise of all rounds, and the outcome."""
    fingerprints = []
    for step in run_trial(trial, data, **options):
        if isinstance(step, Outcome):
            return fingerprints, step
        fingerprints.append(step.values["noise"])
    raise AssertionError("there was no outcome")


@pytest.mark.parametrize(("noise", "different"), [("seeded", 1), ("secret", 4)])
def test_seeded_cells_share_noise_and_secret_cells_do_not(noise: str, different: int) -> None:
    cells = small_cells(
        "dp-gaussian",
        epsilon=[1.0, 4.0],
        privacy={"noise": noise},
    )
    (data,) = cells.data.values()
    seen = set()
    for trial in cells.trials * 2:
        fingerprints, _ = trained(trial, data)
        seen.add(tuple(fingerprints))
    assert len(seen) == different


def test_row_draws_of_clients_are_secret_too() -> None:
    trial, data, _ = one_cell("fedhypevae", epsilon=4.0, privacy=SECRET)
    draws = []
    batches = []
    for _ in range(2):
        seeds = seeds_of(trial, None)
        clients = local_pool(trial, data, seeds).cohorts[0].clients
        drawn = clients.draws(0, 5, 1, {"posterior": (3,)})
        draws.append(drawn["posterior"])
        batch = clients.minibatches(1, 4, 50)
        batches.append(torch.stack(batch))
    assert not (draws[0] == draws[1]).any()
    differs = batches[0] != batches[1]
    assert differs.double().mean() > 0.5


def test_resumed_cell_takes_its_secret_from_the_checkpoint() -> None:
    entry = quick("fedhypevae", rounds=6)
    trial, data, _ = one_cell(entry, epsilon=4.0, privacy=SECRET)
    checkpoints = Checkpoints(every=0)
    contents = []
    whole_noise = []
    whole = None
    for step in run_trial(trial, data, checkpoints=checkpoints):
        if isinstance(step, Outcome):
            whole = step
        else:
            contents.append(checkpoints.content)
            whole_noise.append(step.values["noise"])
    resumed_from = Checkpoints(contents[5], every=3600)
    noise, resumed = trained(trial, data, checkpoints=resumed_from)
    assert noise == whole_noise[6:]
    assert len(noise) == 2
    assert whole is not None
    assert whole.state.keys() == resumed.state.keys()
    for name, value in whole.state.items():
        assert torch.equal(value, resumed.state[name])
    assert resumed.mechanisms == whole.mechanisms
    assert resumed.epsilon_spent == whole.epsilon_spent
    assert resumed.unaccounted == ""


def run_of(folder: Path, kept_rows: np.ndarray) -> Cell:
    """A run of one secret cell, of a data set that lacks the rows that are not kept."""
    stream = np.random.default_rng(0)
    path = folder.parents[1] / "rows.npz"
    numbers = np.arange(200)
    x = stream.standard_normal((200, 6)).astype(np.float32)
    is_test = numbers % 5 == 0
    np.savez(
        path,
        x=x[kept_rows],
        y=numbers[kept_rows] % 3,
        split=2 * is_test[kept_rows],
    )
    trial, data, _ = one_cell(
        "dp-gaussian",
        privacy=SECRET,
        dataset={"npz": str(path), "name": "mine"},
        epsilon=4.0,
    )
    _, outcome = trained(trial, data)
    kept(folder, trial, outcome, data.class_names)
    return trial.cell


def facts_of_release(folder: Path, kept_rows: np.ndarray) -> list[str]:
    """All texts about a generator, without the hash of its tensors, which are noisy."""
    run = folder / "run"
    package = folder / "package"
    cell = run_of(run, kept_rows)
    path = load_generator(run).release(package)
    content = path.with_suffix(".safetensors").read_bytes()
    tensors = hashlib.sha256(content).hexdigest()
    texts = [path.read_text()]
    for source in (run, package):
        facts = load_generator(source).manifest(5)
        assert facts["release"] == "under its epsilon"
        facts["tensors_sha256"] = tensors
        texts.append(json.dumps(facts))
    shown = []
    for text in texts:
        assert tensors in text
        shown.append(text.replace(tensors, ""))
    for file in package.iterdir():
        shown.append(file.name)
    for private in (cell.cell_id, cell.training_id, str(cell.dataset_hash)):
        assert private not in "".join(shown)
    return sorted(shown)


def test_facts_of_secret_generator_ignore_one_example(tmp_path: Path) -> None:
    numbers = np.arange(200)
    whole = facts_of_release(tmp_path / "whole", numbers >= 0)
    neighbour = facts_of_release(tmp_path / "neighbour", numbers != 7)
    assert whole == neighbour
