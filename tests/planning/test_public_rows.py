"""Public rows: which source they come from, who is given them, what they change, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import Ran
from cells import NODES, small_grid
from fedsim.results.grid_rows import grid_rows
from fedsim.results.join import Entry, Lines
from PIL import Image

from baselines.dp_gaussian import DPGaussian
from fedsim.data.images import ImageSet
from fedsim.data.public import PublicRows
from fedsim.data.sources.load import load_public, opened
from fedsim.data.sources.registry import read_unlabelled
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.methods.messages import Server
from fedsim.methods.products import Generator
from fedsim.planning.prepare import Prepared, prepare
from fedsim.report.statement import statements
from fedsim.results.generators import load_generator
from fedsim.results.result_lines import training_line
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Outcome, run_trial

DIM = 64


class Shifted(DPGaussian):
    """DP-Gaussian that also keeps the mean of the public rows."""

    def uses_public(self) -> bool:
        return True

    def initial_server(self, seeds: Any) -> Server:
        server = super().initial_server(seeds)
        if self.task.public is not None:
            server.tensors["public_mean"] = self.task.public.rows().mean(0)
        return server


class Unaware(DPGaussian):
    """Looks for public rows without saying so."""

    def generator(self, server: Server) -> Generator:
        assert self.task.public is None
        return super().generator(server)


def rows(count: int = 30, dim: int = DIM, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def npz(path: Path, **arrays: Any) -> dict[str, str]:
    np.savez(path, **arrays)
    return {"npz": str(path)}


@pytest.fixture
def public(tmp_path: Path) -> dict[str, str]:
    return npz(tmp_path / "other.npz", x=rows())


def prepared(public: Any, *algorithms: Any, **values: Any) -> Prepared:
    return prepare(grid(public, *algorithms, **values), NODES)


def grid(public: Any, *algorithms: Any, **values: Any) -> Grid:
    return small_grid(*(algorithms or (Shifted,)), public=public, **values)


def test_a_method_that_uses_them_is_given_the_rows_and_no_other_method_is(public: dict[str, str]) -> None:
    ready = prepared(public, Shifted, Unaware)
    used, unused = ready.trials
    held = ready.data[used.data_key].public
    assert held is not None
    assert (used.cell.public, used.cell.public_hash) == ("other", held.fingerprint)
    assert (unused.cell.public, unused.cell.public_hash) == (None, None)
    assert np.allclose(np.linalg.norm(held.x, axis=1), 1)
    given, kept = (build_algorithm(t.cell.algorithm, t.cell.params, t.given(ready.data[t.data_key]).task) for t in (used, unused))
    assert given.task.public is held
    assert kept.task.public is None


def test_only_cells_that_use_them_have_other_ids_with_them(public: dict[str, str], tmp_path: Path) -> None:
    other = npz(tmp_path / "second.npz", x=rows(seed=6))
    bare = [t.cell.cell_id for t in prepared(None, "dp-gaussian").trials]
    first, second = ([t.cell.cell_id for t in prepared(held, Shifted, "dp-gaussian").trials] for held in (public, other))
    assert first[1:] == second[1:] == bare
    assert first[0] != second[0]


def test_they_travel_with_the_data_and_not_with_trials(public: dict[str, str]) -> None:
    ready = prepared(public)
    (trial,) = ready.trials
    assert len(pickle.dumps(trial)) < rows().nbytes
    assert trial.given(ready.data[trial.data_key]).cohorts()[0].given(None).task.public is None


def test_a_row_names_them_with_their_hash_and_licence(public: dict[str, str]) -> None:
    ready = prepared({**public, "licence": "CC0"})
    (trial,) = ready.trials
    *_, end = run_trial(trial, ready.data[trial.data_key])
    assert isinstance(end, Outcome)
    assert "server.tensors.public_mean" in end.state
    line = training_line(trial, end, {})
    row = Lines({trial.cell.training_id: line}, {}, {}).trained_row(Entry(trial.cell.cell_id, trial.cell.training_id, "it"))
    assert (row.public, row.public_hash, row.public_licence) == ("other", trial.cell.public_hash, "CC0")


def test_the_licence_of_a_known_set_is_the_catalogues() -> None:
    assert Grid.model_validate({"algorithms": ["dp-gaussian"], "public": "medmnist:bloodmnist"}).public.terms[0] == "CC BY 4.0"  # type: ignore[union-attr]


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_are_the_sources_own_and_may_be_missing(tmp_path: Path, *, labelled: bool) -> None:
    labels = {"y": np.arange(30) % 3, "split": np.where(np.arange(30) < 20, 0, 2)}
    (data,) = prepared(npz(tmp_path / "p.npz", x=rows(), **(labels if labelled else {}))).data.values()
    held = data.public
    assert held is not None
    assert len(held.x) == 30
    assert held.y is None if not labelled else np.bincount(held.y).tolist() == [10, 10, 10]


def test_a_method_that_needs_them_is_refused_without() -> None:
    with pytest.raises(UserError, match=r"public with .*Shifted: the method uses public rows, and there are none; name a data set"):
        prepare(small_grid(Shifted), NODES)


def test_rows_that_are_private_too_are_refused(tmp_path: Path) -> None:
    data = opened(small_grid("dp-gaussian").dataset[0]).labelled()
    mixed = np.concatenate([rows(), 4 * data.x_train[[9, 4]]])  # scaled to unit norm they are the same
    with pytest.raises(UserError, match=r"public: 2 training rows of 'digits\S*' are public too, the first is row 4"):
        prepared(npz(tmp_path / "mixed.npz", x=mixed))
    with pytest.raises(UserError, match=r"1 test row of 'digits\S*' is public too, the first is row 3"):
        prepared(npz(tmp_path / "mixed.npz", x=np.concatenate([rows(), data.x_test[3:4]])))


def test_rows_of_another_dimension_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'p' has rows of 9 dimensions, data set 'digits\S*' of 64; give public rows"):
        prepared(npz(tmp_path / "p.npz", x=rows(dim=9)))


def test_the_fingerprint_is_of_rows_and_labels_alone() -> None:
    x, y = rows(), np.arange(30)
    assert PublicRows(x, y, "a").fingerprint == PublicRows(x.copy(), y, "b", "CC0").fingerprint
    assert len({PublicRows(x, y).fingerprint, PublicRows(x).fingerprint, PublicRows(x[::-1], y).fingerprint}) == 3


def test_a_generator_is_judged_and_loaded_without_them(public: dict[str, str], bench: Callable[..., Ran]) -> None:
    entry = {"name": "dp-gaussian", "params": {"project": 8}}
    ran = bench(small_grid(entry, public=public, epsilon=8), "kept")
    assert ran.code == 0
    saved = load_generator(ran.folder)
    assert saved.facts.task.public is None
    assert saved.facts.cell.public == "other"
    assert saved.sample([0, 1, 2]).shape == (3, DIM)
    assert saved.manifest(2)["public"] == "other"
    (row,) = grid_rows(ran.folder)
    (statement,) = statements([row])
    sentence = "other (licence: not known): no unit's rows; what is made of them alone costs nothing, and ε does not protect them"
    assert ("public data", sentence) in statement.parts


def test_every_actor_of_a_cell_has_them(public: dict[str, str], ray_bench: Callable[..., Ran], bench: Callable[..., Ran]) -> None:
    entry = {"name": "dp-gaussian", "params": {"project": 8}}
    spread = small_grid(entry, public=public, epsilon=8, resources={"clients_per_actor": 2})
    scores = [row.scores for ran in (ray_bench(spread, "spread"), bench(spread, "together")) for row in grid_rows(ran.folder)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize("source", ["csv", "imagefolder"])
def test_images_need_no_labels(tmp_path: Path, source: str) -> None:
    images = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 90, 180, 250)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "table.csv").write_text("path\n" + "".join(f"{number}.png\n" for number in range(4)))
    spec = DatasetSpec.model_validate({source: str(tmp_path / "table.csv" if source == "csv" else tmp_path)})
    with pytest.raises(UserError, match="holds images; name what embeds them"):
        load_public(spec)
    read = read_unlabelled(spec)
    assert isinstance(read, ImageSet)
    assert len(read) == 4
