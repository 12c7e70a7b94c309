"""Public rows: which methods get them, and which are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import NODES, small_grid

from baselines.dp_gaussian import DPGaussian
from fedsim.data.embeddings import unit_norm
from fedsim.data.sources.load import load
from fedsim.errors import UserError
from fedsim.methods.messages import Server
from fedsim.methods.products import Generator
from fedsim.runs.prepare import Prepared, prepare
from fedsim.training.cohort import build_algorithm

DIM = 64


class Shifted(DPGaussian):
    """DP-Gaussian that also keeps the mean of the public rows."""

    def uses_public(self) -> bool:
        return True

    def initial_server(self, seeds: Any) -> Server:
        server = super().initial_server(seeds)
        public = self.task.public
        if public is not None:
            server.tensors["public_mean"] = public.rows().mean(0)
        return server


class Unaware(DPGaussian):
    """Looks for public rows without saying so."""

    def generator(self, server: Server) -> Generator:
        assert self.task.public is None
        return super().generator(server)


def rows(
    count: int = 30,
    dim: int = DIM,
    seed: int = 5,
) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, dim))
    return x.astype(np.float32)


def npz(path: Path, **arrays: Any) -> dict[str, str]:
    np.savez(path, **arrays)
    return {"npz": str(path)}


@pytest.fixture
def public(tmp_path: Path) -> dict[str, str]:
    return npz(tmp_path / "other.npz", x=rows())


def prepared(public: Any, *algorithms: Any) -> Prepared:
    grid = small_grid(
        *(algorithms or (Shifted,)),
        public=public,
    )
    return prepare(grid, NODES)


def test_only_methods_that_use_public_rows_get_them(public: dict[str, str]) -> None:
    ready = prepared(public, Shifted, Unaware)
    used, unused = ready.trials
    data = ready.data[used.data_key]
    assert data.public is not None
    assert used.cell.public == "other"
    assert used.cell.public_hash == data.public.fingerprint
    assert unused.cell.public is None
    assert unused.cell.public_hash is None
    (without,) = prepared(None, Unaware).trials
    assert unused.cell.cell_id == without.cell.cell_id
    norms = np.linalg.norm(data.public.x, axis=1)
    assert np.allclose(norms, 1)
    for trial, rows_in_task in (
        (used, data.public),
        (unused, None),
    ):
        cell = trial.cell
        algorithm = build_algorithm(
            cell.algorithm,
            cell.params,
            trial.given(data).task,
        )
        assert algorithm.task.public is rows_in_task


def test_method_that_needs_public_rows_is_refused_without() -> None:
    message = r"public .*Shifted.*: the method uses public rows, and there are none; name a data"
    with pytest.raises(UserError, match=message):
        prepared(None, Shifted)


def test_public_rows_that_are_training_rows_are_refused(tmp_path: Path) -> None:
    x = load(small_grid("dp-gaussian").dataset[0]).x_train
    # Scaled to unit norm these rows are the same.
    unchanged = (unit_norm(x) == x).all(1)
    first, second, *_ = np.flatnonzero(unchanged)
    mixed = np.concatenate([rows(), 4 * x[[second, first]]])
    message = rf"public: 2 training rows of 'digits\S*' are public too, the first is row {first}"
    with pytest.raises(UserError, match=message):
        prepared(npz(tmp_path / "mixed.npz", x=mixed))


def test_public_rows_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    message = r"'p' has rows of 9 dimensions, data set 'digits\S*' of 64; give public rows"
    with pytest.raises(UserError, match=message):
        prepared(npz(tmp_path / "p.npz", x=rows(dim=9)))
