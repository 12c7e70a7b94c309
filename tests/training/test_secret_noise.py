"""Secret noise: every cell has its own, stored in its checkpoint only; and the facts that a
released generator may contain.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import NODES, one_cell, quick, small_grid
from rows import kept

from fedsim.data.embeddings import Embeddings
from fedsim.grid.models import Cell
from fedsim.results.generators import load_generator
from fedsim.runs.prepare import Prepared, prepare
from fedsim.training.state import Checkpoints
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial, seeds_of

SECRET = {"noise": "secret"}


def prepared(*entries: Any, noise: str = "secret", **keys: Any) -> Prepared:
    return prepare(
        small_grid(*entries, **{"epsilon": [1.0, 4.0], "privacy": {"noise": noise}, **keys}), NODES
    )


def fingerprints(trial: Trial, data: Embeddings) -> list[int]:
    """Of the noise of every round."""
    *records, _ = run_trial(trial, data)
    return [record.values["noise"] for record in records]  # type: ignore[union-attr]


def test_seeded_cells_share_noise_and_secret_cells_do_not() -> None:
    for noise, different in (("seeded", 1), ("secret", 4)):
        cells = prepared("dp-gaussian", noise=noise)
        (data,) = cells.data.values()
        seen = {tuple(fingerprints(trial, data)) for trial in (*cells.trials, *cells.trials)}
        assert len(seen) == different


def test_row_draws_of_clients_are_secret_too() -> None:
    trial, data, _ = one_cell("fedhypevae", epsilon=4.0, privacy=SECRET)
    worlds = [local_pool(trial, data, seeds_of(trial, None)).cohorts[0].clients for _ in range(2)]  # type: ignore[attr-defined]
    one, two = (clients.draws(0, 5, 1, {"posterior": (3,)})["posterior"] for clients in worlds)
    assert not (one == two).any()
    one, two = (torch.stack(clients.minibatches(1, 4, 50)) for clients in worlds)
    assert (one != two).double().mean() > 0.5


def test_resumed_cell_takes_its_secret_from_the_checkpoint() -> None:
    trial, data, _ = one_cell(quick("fedhypevae", rounds=6), epsilon=4.0, privacy=SECRET)
    going = run_trial(trial, data, checkpoints=(kept := Checkpoints(every=0)))
    start = [next(going) for _ in range(6)]
    resumed = Checkpoints(kept.content, every=3600)
    *rest, whole = going
    *again, outcome = run_trial(trial, data, checkpoints=resumed)
    assert (len(start), len(again)) == (6, 2)
    assert [r.values["noise"] for r in rest] == [r.values["noise"] for r in again]  # type: ignore[union-attr]
    assert isinstance(whole, Outcome)
    assert isinstance(outcome, Outcome)
    assert whole.state.keys() == outcome.state.keys()
    assert all(torch.equal(whole.state[name], outcome.state[name]) for name in whole.state)
    assert (outcome.mechanisms, outcome.epsilon_spent, outcome.unaccounted) == (
        whole.mechanisms,
        whole.epsilon_spent,
        "",
    )


def run_of(folder: Path, noise: str, kept_rows: np.ndarray) -> Cell:
    """A run of one cell, of a data set that lacks the rows that are not kept."""
    stream = np.random.default_rng(0)
    rows = folder.parent / "rows.npz"
    x = stream.standard_normal((200, 6)).astype(np.float32)
    y = np.arange(200) % 3
    split = 2 * (np.arange(200) % 5 == 0)
    np.savez(rows, x=x[kept_rows], y=y[kept_rows], split=split[kept_rows])
    trial, data, _ = one_cell(
        "dp-gaussian",
        privacy={"noise": noise},
        dataset={"npz": str(rows), "name": "mine"},
        epsilon=4.0,
    )
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    kept(folder, trial, outcome, data.class_names)
    return trial.cell


NEIGHBOURS = (np.arange(200) >= 0, np.arange(200) != 7)


def without_hash(text: str, tensors: str) -> str:
    """A text without the hash of the released tensors, which anyone who has those could compute."""
    assert tensors in text
    return text.replace(tensors, "")


def test_facts_of_secret_generator_ignore_one_example(tmp_path: Path) -> None:
    packages = []
    draws = []
    for kept_rows in NEIGHBOURS:
        run = tmp_path / f"run {kept_rows.sum()}"
        out = tmp_path / f"package {kept_rows.sum()}"
        cell = run_of(run, "secret", kept_rows)
        path = load_generator(run).release(out)
        tensors = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
        packages.append(
            (sorted(file.name for file in out.iterdir()), without_hash(path.read_text(), tensors))
        )
        drawn = [load_generator(folder).manifest(5) for folder in (run, out)]
        draws.append(
            [
                without_hash(json.dumps(facts | {"tensors_sha256": tensors}), tensors)
                for facts in drawn
            ]
        )
        assert all(facts["release"] == "under its epsilon" for facts in drawn)
        for private in (cell.cell_id, cell.training_id, str(cell.dataset_hash)):
            assert private not in f"{packages} {draws}"
    assert packages[0] == packages[1]
    assert draws[0] == draws[1]
