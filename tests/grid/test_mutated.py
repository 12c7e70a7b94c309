"""Grids with mistakes of any kind: each is planned, or refused in one line that says where."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cells import NODES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.grid.read import load_grid
from fedsim.runs.prepare import prepare

BASE: dict[str, Any] = {
    "name": "g",
    "dataset": [{"name": "digits", "limit": 60}],
    "partition": {"scheme": "dirichlet", "min_rows": 1},
    "algorithms": ["dp-gaussian", {"name": "weight-noise", "params": {"rounds": 2, "clip": 1.0}, "label": "noise"}, "dp-gmm"],
    "alpha": [0.5, 1.0],
    "clients": [2, 3],
    "epsilon": [1.0, float("inf")],
    "seeds": [0],
    "delta": 1e-4,
    "unit": "example",
    "trust": "aggregate",
    "privacy": {"noise": "seeded"},
    "scan": {"rounds": [2, 3]},
    "evaluation": {"per_class": 10, "readouts": ["knn"], "per_client": False},
    "resources": {"clients_per_actor": "auto", "cpus_per_actor": 1, "cell_timeout": "2h", "memory_per_cell": "4GB"},
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 60)
    | st.sampled_from([2**63, 2**64 - 1, 10**30, 1e-300, 1e300])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["auto", "all", "each", "digits", "iid", "client", "silo", "dp-merf", "inf", "2h", "4GB", "x.py:X", "a.b:C"])
)
TEXTS = st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inside for found in [(*path, key), *places(each, (*path, key))]]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The text of a grid in which one to three things are replaced, removed, added or wrapped, or a character is lost."""
    grid = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := places(grid)):
            break
        *path, key = draw(st.sampled_from(found))
        parent: Any = grid
        for each in path:
            parent = parent[each]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap", "rename"]))
        if how == "replace":
            parent[key] = draw(VALUES)
        elif how == "remove":
            del parent[key]
        elif how == "wrap":
            parent[key] = draw(st.sampled_from([[parent[key]], [parent[key], parent[key]], {"name": parent[key]}]))
        elif isinstance(parent, dict):
            parent[draw(TEXTS)] = parent.pop(key) if how == "rename" else draw(VALUES)
    text = yaml.safe_dump(grid, allow_unicode=True)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.sampled_from(["", ":", "[", "\t", "'", "&a ", "\0"])) + text[at + 1 :]
    return text


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_a_mutated_grid_is_prepared_or_refused_in_one_line(count: int) -> None:
    settings(max_examples=count, derandomize=True, suppress_health_check=list(HealthCheck))(given(mutated())(one_line_at_most))()


def one_line_at_most(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "g.yaml"
        file.write_text(text, encoding="utf-8")
        mistake = None
        try:
            prepare(load_grid(file), NODES)
        except UserError as error:
            mistake = error
    assert mistake is None or ("\n" not in str(mistake) and mistake.where and mistake.what)
