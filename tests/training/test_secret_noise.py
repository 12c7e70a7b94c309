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
    *records, outcome = run_trial(trial, data, **options)
    assert isinstance(outcome, Outcome)
    return [record.values["noise"] for record in records], outcome  # type: ignore[union-attr]


@pytest.mark.parametrize(("noise", "different"), [("seeded", 1), ("secret", 4)])
def test_seeded_cells_share_noise_and_secret_cells_do_not(noise: str, different: int) -> None:
    cells = small_cells("dp-gaussian", epsilon=[1.0, 4.0], privacy={"noise": noise})
    (data,) = cells.data.values()
    seen = set()
    for trial in (*cells.trials, *cells.trials):
        fingerprints, _ = trained(trial, data)
        seen.add(tuple(fingerprints))
    assert len(seen) == different


def test_row_draws_of_clients_are_secret_too() -> None:
    trial, data, _ = one_cell("fedhypevae", epsilon=4.0, privacy=SECRET)
    draws = []
    batches = []
    for _ in range(2):
        pool = local_pool(trial, data, seeds_of(trial, None))
        clients = pool.cohorts[0].clients
        draws.append(clients.draws(0, 5, 1, {"posterior": (3,)})["posterior"])
        batches.append(torch.stack(clients.minibatches(1, 4, 50)))
    assert not (draws[0] == draws[1]).any()
    assert (batches[0] != batches[1]).double().mean() > 0.5


def test_resumed_cell_takes_its_secret_from_the_checkpoint() -> None:
    trial, data, _ = one_cell(quick("fedhypevae", rounds=6), epsilon=4.0, privacy=SECRET)
    checkpoints = Checkpoints(every=0)
    running = run_trial(trial, data, checkpoints=checkpoints)
    for _ in range(6):
        next(running)
    content = checkpoints.content
    *rest, whole = running
    noise, resumed = trained(trial, data, checkpoints=Checkpoints(content, every=3600))
    assert noise == [record.values["noise"] for record in rest]  # type: ignore[union-attr]
    assert len(noise) == 2
    assert isinstance(whole, Outcome)
    assert whole.state.keys() == resumed.state.keys()
    for name, value in whole.state.items():
        assert torch.equal(value, resumed.state[name])
    assert resumed.mechanisms == whole.mechanisms
    assert resumed.epsilon_spent == whole.epsilon_spent
    assert resumed.unaccounted == ""


def run_of(folder: Path, kept_rows: np.ndarray) -> Cell:
    """A run of one secret cell, of a data set that lacks the rows that are not kept."""
    stream = np.random.default_rng(0)
    rows = folder.parents[1] / "rows.npz"
    numbers = np.arange(200)
    arrays = {
        "x": stream.standard_normal((200, 6)).astype(np.float32),
        "y": numbers % 3,
        "split": 2 * (numbers % 5 == 0),
    }
    np.savez(rows, **{name: values[kept_rows] for name, values in arrays.items()})
    dataset = {"npz": str(rows), "name": "mine"}
    trial, data, _ = one_cell("dp-gaussian", privacy=SECRET, dataset=dataset, epsilon=4.0)
    _, outcome = trained(trial, data)
    kept(folder, trial, outcome, data.class_names)
    return trial.cell


def facts_of_release(folder: Path, kept_rows: np.ndarray) -> list[str]:
    """All texts about a generator, without the hash of its tensors, which are noisy."""
    run = folder / "run"
    package = folder / "package"
    cell = run_of(run, kept_rows)
    path = load_generator(run).release(package)
    tensors = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
    texts = [path.read_text()]
    for source in (run, package):
        facts = load_generator(source).manifest(5)
        assert facts["release"] == "under its epsilon"
        texts.append(json.dumps(facts | {"tensors_sha256": tensors}))
    assert all(tensors in text for text in texts)
    texts += sorted(file.name for file in package.iterdir())
    texts = [text.replace(tensors, "") for text in texts]
    for private in (cell.cell_id, cell.training_id, str(cell.dataset_hash)):
        assert not any(private in text for text in texts)
    return texts


def test_facts_of_secret_generator_ignore_one_example(tmp_path: Path) -> None:
    numbers = np.arange(200)
    whole = facts_of_release(tmp_path / "whole", numbers >= 0)
    neighbour = facts_of_release(tmp_path / "neighbour", numbers != 7)
    assert whole == neighbour
