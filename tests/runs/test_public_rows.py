"""Public rows: which source they come from, who is given them, what they change, and what is
refused.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import NODES, small_grid

from baselines.dp_gaussian import DPGaussian
from fedsim.data.embeddings import unit_norm
from fedsim.data.sources.load import load
from fedsim.errors import UserError
from fedsim.grid.models import Grid
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


def test_only_methods_that_use_public_rows_get_them(
    public: dict[str, str],
) -> None:
    ready = prepared(public, Shifted, Unaware)
    used, unused = ready.trials
    assert unused.cell.cell_id == prepared(None, Unaware).trials[0].cell.cell_id
    with pytest.raises(
        UserError,
        match=r"public with .*Shifted: the method uses public rows, and there are none; name a "
        r"data set",
    ):
        prepared(None, Shifted)
    held = ready.data[used.data_key].public
    assert held is not None
    assert (used.cell.public, used.cell.public_hash) == ("other", held.fingerprint)
    assert (unused.cell.public, unused.cell.public_hash) == (None, None)
    assert np.allclose(np.linalg.norm(held.x, axis=1), 1)
    given, kept = (
        build_algorithm(t.cell.algorithm, t.cell.params, t.given(ready.data[t.data_key]).task)
        for t in (used, unused)
    )
    assert given.task.public is held
    assert kept.task.public is None


def test_public_rows_that_are_private_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = load(small_grid("dp-gaussian").dataset[0])
    first, second, *_ = np.flatnonzero(
        (unit_norm(data.x_train) == data.x_train).all(1)
    )  # scaled to unit norm they are the same
    mixed = np.concatenate([rows(), 4 * data.x_train[[second, first]]])
    with pytest.raises(
        UserError,
        match=rf"public: 2 training rows of 'digits\S*' are public too, the first is row {first}",
    ):
        prepared(npz(tmp_path / "mixed.npz", x=mixed))
    with pytest.raises(
        UserError,
        match=r"'p' has rows of 9 dimensions, data set 'digits\S*' of 64; give public rows",
    ):
        prepared(npz(tmp_path / "p.npz", x=rows(dim=9)))
