import json
from pathlib import Path

import numpy as np
import pytest
from cells import NODES, quick, small_grid
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources import SOURCES, catalogue_table
from fedsim.data.sources.source import Asked, Listing, Source
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.methods.one_shot import OneShot
from fedsim.partition import SCHEMES
from fedsim.partition.schemes.scheme import Division, Integers, Scheme, SchemeParams
from fedsim.planning.node import Node
from fedsim.planning.prepare import prepare
from fedsim.tagged import KindParams
from fedsim.training.trial import run_trial


class Turns(SchemeParams):
    rows: int = Field(1, ge=1)


def by_turns(division: Division[Turns], _: np.random.Generator) -> Integers:
    return np.arange(len(division.y)) // division.given.rows % division.clients


def even_only(division: Division[Turns]) -> None:
    if division.clients % 2:
        raise UserError("clients", f"{division.clients} is odd", "give an even number")


def turned(x: NDArray[np.float32], client: int, given: Turns, seed: int) -> NDArray[np.float32]:
    """The features shifted round by the client's number: a map that is easy to see."""
    return np.roll(x, client, axis=1)


class Blobs(KindParams):
    apart: float = 9.0
    file: Path | None = None


def two_blobs(asked: Asked) -> Embeddings:
    x = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    y, split = np.arange(90) % 2, np.where(np.arange(90) < 60, 0, 2)
    x[:, 0] += asked.given.apart * y
    return Embeddings.from_arrays(asked.name, x, y, split)


def test_a_scheme_is_one_object_that_a_grid_then_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "by-turns", Scheme(by_turns, even_only, Turns, map_rows=turned))
    grid = small_grid("dp-gaussian", partition={"scheme": "by-turns"})
    prepared = prepare(grid, NODES)
    (trial,) = prepared.trials
    assert [rows[0] for rows in trial.partition.rows] == [0, 1, 2, 3]
    as_is, seen = prepared.data[grid.dataset[0].key], prepared.data[trial.data_key]
    np.testing.assert_array_equal(seen.x_train[2::4], np.roll(as_is.x_train[2::4], 2, axis=1))
    np.testing.assert_array_equal(seen.x_test[3::4], np.roll(as_is.x_test[3::4], 3, axis=1))
    list(run_trial(trial, seen))
    with pytest.raises(UserError, match=r"^clients\[0\]: 5 is odd; give an even number"):
        prepare(small_grid("dp-gaussian", partition={"scheme": "by-turns"}, clients=5), NODES)


def test_a_schemes_parameters_come_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "by-turns", Scheme(by_turns, params=Turns))
    (trial,) = prepare(small_grid("dp-gaussian", partition={"scheme": "by-turns", "rows": 3}), NODES).trials
    assert trial.partition.rows[1].tolist()[:4] == [3, 4, 5, 15]
    assert trial.cell.partition.model_dump() == {"scheme": "by-turns", "min_size": 2, "together": None, "rows": 3}
    (other,) = prepare(small_grid("dp-gaussian", partition={"scheme": "by-turns", "rows": 2}), NODES).trials
    assert trial.cell.cell_id != other.cell.cell_id
    with pytest.raises(ValidationError, match=r"partition.rows\n.*greater than or equal to 1"):
        small_grid("dp-gaussian", partition={"scheme": "by-turns", "rows": 0})
    with pytest.raises(ValidationError, match="scheme 'iid' takes no rows; remove it or give scheme: by-turns"):
        small_grid("dp-gaussian", partition={"scheme": "iid", "rows": 3})


def test_sampled_clients_are_refused_where_the_budget_is_an_examples() -> None:
    sampled = quick("fedhypevae", client_rate=0.5)
    with pytest.raises(UserError, match=r"client_rate with fedhypevae: 0.5 samples clients, .*; give 1, or unit: client"):
        prepare(small_grid(sampled), NODES)
    (trial,) = prepare(small_grid(sampled, unit="client"), NODES).trials
    assert trial.plan is not None
    assert trial.plan.main.sample_rate == 0.5


def test_a_data_set_is_one_object_that_a_grid_then_names(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Source(
        lambda: [Listing("blobs", "2", "60 / 30", "embeddings of 4", "none", "drawn", "yes")], embeddings=two_blobs, params=Blobs
    )
    monkeypatch.setitem(SOURCES, "blobs", known)
    (trial,) = prepare(small_grid("dp-gaussian", dataset={"name": "blobs", "limit": 20}), NODES).trials
    assert (trial.task.dim, trial.task.classes, trial.train_rows) == (4, 2, 20)
    assert trial.cell.dataset.display == "blobs[:20]"
    assert "blobs" in list(catalogue_table().columns[0].cells)
    with pytest.raises(ValueError, match="'blobs' takes no size; it is for medmnist"):
        small_grid("dp-gaussian", dataset={"name": "blobs", "size": 64})
    with pytest.raises(ValueError, match="'digits' takes no apart; it is for blobs"):
        small_grid("dp-gaussian", dataset={"name": "digits", "apart": 1.0})
    with pytest.raises(ValidationError, match=r"dataset.0.apart\n.*valid number"):
        small_grid("dp-gaussian", dataset={"name": "blobs", "apart": "far"})
    (near,) = prepare(small_grid("dp-gaussian", dataset={"name": "blobs", "limit": 20, "apart": 0.5}), NODES).trials
    assert near.cell.dataset_hash != trial.cell.dataset_hash
    spec = DatasetSpec.model_validate({"name": "blobs", "file": "a", "apart": 2.0}).within(Path("/data"))
    assert json.loads(spec.key) == {"name": "blobs", "file": "/data/a", "apart": 2.0}
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValueError, match="unknown data set 'blob'; did you mean 'blobs'"):
        small_grid("dp-gaussian", dataset="blob")


def test_cells_of_one_data_set_alpha_number_of_clients_and_seed_share_a_partition() -> None:
    trials = prepare(small_grid("dp-gaussian", "weight-noise", epsilon=[1.0, 4.0], seeds=[0, 1]), NODES).trials
    assert len(trials) == 8
    assert len({id(trial.partition) for trial in trials}) == 2
    assert all(len({id(t.partition) for t in trials if t.cell.seed == seed}) == 1 for seed in (0, 1))


def test_what_cannot_be_planned_or_placed_is_named_by_the_grid_s_key() -> None:
    with pytest.raises(UserError, match=r"^unit with fedhypevae-sites: does not support 'client'; supported: example, group"):
        prepare(small_grid("fedhypevae-sites", unit="client"), NODES)
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


def test_a_plan_is_of_the_cells_own_parameters() -> None:
    entries = [
        quick("fedhypevae", rounds=rounds, sample_rate=rate) | {"label": f"{rounds} {rate}"} for rounds in (3, 5) for rate in (0.1, 0.2)
    ]
    for trial in prepare(small_grid(*entries, epsilon=4.0), NODES).trials:
        assert trial.plan is not None
        assert (trial.plan.main.steps, trial.plan.main.sample_rate) == (trial.cell.params["rounds"], trial.cell.params["sample_rate"])


def test_a_plan_is_of_the_cells_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method releases may depend on how many clients there are."""
    scope = "{} clients".format
    monkeypatch.setattr(OneShot, "scope", lambda self: scope(self.task.clients))
    for trial in prepare(small_grid("dp-gaussian", clients=[2, 4], epsilon=4.0), NODES).trials:
        assert trial.plan is not None
        assert trial.plan.scope == scope(trial.cell.clients)


def test_of_several_cells_without_a_plan_the_first_is_told() -> None:
    with pytest.raises(UserError, match=r"^epsilon\[0\] with dp-gaussian: 1e-09 "):
        prepare(small_grid("dp-gaussian", "dp-gmm", epsilon=[1e-9, 2e-9]), NODES)
