from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cells import NODES, small_grid
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources import SOURCES
from fedsim.data.sources.catalogue import catalogue_table
from fedsim.data.sources.source import Asked, Listing, Source
from fedsim.errors import UserError
from fedsim.partition import SCHEMES
from fedsim.partition.schemes.scheme import Division, Integers, Scheme
from fedsim.simulation.label_matrices import label_matrices
from fedsim.simulation.node import Node
from fedsim.simulation.preflight import prepare
from fedsim.simulation.trial import run_trial


def by_turns(division: Division, _: np.random.Generator) -> Integers:
    return np.arange(len(division.y)) % division.clients


def even_only(division: Division) -> None:
    if division.clients % 2:
        raise UserError("clients", f"{division.clients} is odd", "give an even number")


def turned(x: NDArray[np.float32], client: int, given: Mapping[str, Any], seed: int) -> NDArray[np.float32]:
    """The features shifted round by the client's number: a map that is easy to see."""
    return np.roll(x, client, axis=1)


def two_blobs(asked: Asked) -> Embeddings:
    x = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    y, split = np.arange(90) % 2, np.where(np.arange(90) < 60, 0, 2)
    x[:, 0] += 9 * y
    return Embeddings.from_arrays(asked.name, x, y, split)


def test_a_scheme_is_one_object_that_a_grid_then_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "by-turns", Scheme(by_turns, even_only, map_rows=turned))
    grid = small_grid("dp-gaussian", partition={"scheme": "by-turns"})
    prepared = prepare(grid, NODES)
    (trial,) = prepared.trials
    assert [rows[0] for rows in trial.partition.rows] == [0, 1, 2, 3]
    as_is, seen = prepared.data[grid.dataset[0].key], prepared.data[trial.data_key]
    np.testing.assert_array_equal(seen.x_train[2::4], np.roll(as_is.x_train[2::4], 2, axis=1))
    np.testing.assert_array_equal(seen.x_test[3::4], np.roll(as_is.x_test[3::4], 3, axis=1))
    assert [matrix.scheme for matrix in label_matrices(grid)] == ["by-turns"]
    *_, outcome = run_trial(trial, seen)
    assert outcome.scores.balanced_accuracy >= 0
    with pytest.raises(UserError, match=r"^clients\[0\]: 5 is odd; give an even number"):
        prepare(small_grid("dp-gaussian", partition={"scheme": "by-turns"}, clients=5), NODES)


def test_a_data_set_is_one_object_that_a_grid_then_names(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Source(lambda: [Listing("blobs", "2", "60 / 30", "embeddings of 4", "none", "drawn", "yes")], embeddings=two_blobs)
    monkeypatch.setitem(SOURCES, "blobs", known)
    (trial,) = prepare(small_grid("dp-gaussian", dataset={"name": "blobs", "limit": 20}), NODES).trials
    assert (trial.task.dim, trial.task.classes, trial.train_rows) == (4, 2, 20)
    assert trial.cell.dataset.display == "blobs[:20]"
    assert "blobs" in list(catalogue_table().columns[0].cells)
    with pytest.raises(ValueError, match="'blobs' takes no size; it is for medmnist"):
        small_grid("dp-gaussian", dataset={"name": "blobs", "size": 64})
    with pytest.raises(ValueError, match="unknown data set 'blob'; did you mean 'blobs'"):
        small_grid("dp-gaussian", dataset="blob")


def test_cells_of_one_data_set_alpha_number_of_clients_and_seed_share_a_partition() -> None:
    trials = prepare(small_grid("dp-gaussian", "weight-noise", epsilon=[1.0, 4.0], seeds=[0, 1]), NODES).trials
    assert len(trials) == 8
    assert len({id(trial.partition) for trial in trials}) == 2
    assert all(len({id(t.partition) for t in trials if t.cell.seed == seed}) == 1 for seed in (0, 1))


def test_what_cannot_be_planned_or_placed_is_named_by_the_grid_s_key() -> None:
    with pytest.raises(UserError, match=r"^algorithms: algorithm dp-gaussian with dp-gaussian: does not support 'client'"):
        prepare(small_grid("dp-gaussian", unit="client"), NODES)
    with pytest.raises(UserError, match=r"^epsilon\[1\] with dp-gaussian: 1e-06 is too small"):
        prepare(small_grid("dp-gaussian", epsilon=[1.0, 1e-6]), NODES)
    with pytest.raises(UserError, match=r"^resources.clients_per_actor: 4 clients need 4 actors at once and the cluster has room for 2"):
        prepare(small_grid("dp-gaussian", resources={"clients_per_actor": 1}), [Node(2.0, 0.0)])
    with pytest.raises(UserError, match=r"^dataset\[1\]: /none.npz: there is no such file"):
        prepare(small_grid("dp-gaussian", dataset=["digits", {"npz": "/none.npz"}]), NODES)


def test_cells_that_differ_in_alpha_and_seed_alone_share_a_plan() -> None:
    trials = prepare(small_grid("dp-gaussian", "fedavg-cvae", alpha=[0.3, 1.0], seeds=[0, 1], epsilon=[1, 4]), NODES).trials
    plans = {(trial.cell.label, trial.cell.epsilon): trial.plan for trial in trials}
    assert len(plans) == 3
    assert all(trial.plan is plans[trial.cell.label, trial.cell.epsilon] for trial in trials)
    assert [plan and plan.epsilon_target for plan in plans.values()] == [1.0, 4.0, None]


def test_of_several_cells_without_a_plan_the_first_is_told() -> None:
    with pytest.raises(UserError, match=r"^epsilon\[0\] with dp-gaussian: 1e-09 "):
        prepare(small_grid("dp-gaussian", "dp-gmm", epsilon=[1e-9, 2e-9]), NODES)
