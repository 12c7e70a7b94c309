"""Small cells, ready to run: 200 rows of digits, 4 clients, trainings of a moment."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.evaluation.scores import Scores, probe_predictions, scores_of
from fedsim.evidence.check.subject import BRIEF
from fedsim.grid.models import Grid
from fedsim.methods.coordinates import PREFIX
from fedsim.methods.messages import Task, Tensors
from fedsim.models.probe import fit_probe
from fedsim.plugins.registry import GROUP, lookup
from fedsim.runs.prepare import Node, Prepared, prepare
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Trial

NODES = [Node(4.0, 0.0)]
SMALL: dict[str, Any] = {"dataset": {"name": "digits", "limit": 200}, "clients": 4, "alpha": 1.0}
SMALL["evaluation"] = {"per_class": 10, "evaluators": []}
"""Keys of a grid of short cells."""
WITH_GPUS = [Node(4.0, 2.0)]
"""The same machine with two GPUs by count: what is placed on them computes on the CPU."""
SITES = ("north", "south", "west")
SHIPPED = sorted(entry.name for entry in entry_points(group=GROUP))
"""Algorithms by name; tests may have registered others."""


def crossed(quickly: Callable[..., bool], *axes: Iterable[Any]) -> list[Any]:
    """Return all combinations of the axes; those that are not ``quickly`` run are slow tests."""
    return [
        pytest.param(*values, marks=() if quickly(*values) else pytest.mark.slow)
        for values in product(*axes)
    ]


def quick(name: str, **params: Any) -> dict[str, Any]:
    """Return an entry of ``algorithms`` that trains for a moment."""
    return {"name": name, "params": lookup(name).Params.brief(BRIEF, params) | params}


@cache
def public_digits() -> dict[str, str]:
    """Return digits with noise, which are nobody's data, as the key ``public`` of a grid."""
    from sklearn.datasets import load_digits

    x = load_digits().data
    path = Path(mkdtemp()) / "public.npz"
    np.savez(path, x=(x + np.random.default_rng(0).standard_normal(x.shape)).astype(np.float32))
    return {"npz": str(path), "name": "noisy digits"}


def uses_public(entry: Any) -> bool:
    """Return whether an entry of ``algorithms`` needs public data; a class does not."""
    if isinstance(entry, type):
        return False
    cls = lookup(entry["name"])
    params = entry.get("params", {})
    try:
        return cls(cls.Params.model_validate(params), Task(64, 10, 4)).uses_public()
    except (TypeError, ValidationError):
        return False


def small_grid(*algorithms: str | dict[str, Any], **keys: Any) -> Grid:
    """Return a grid on 200 digits and 4 clients, with public data where a method uses them."""
    entries = [quick(entry) if isinstance(entry, str) else entry for entry in algorithms]
    base = SMALL | ({"public": public_digits()} if any(map(uses_public, entries)) else {})
    return Grid.model_validate({**base, "algorithms": entries, **keys})


def small_cells(*algorithms: str | dict[str, Any], **keys: Any) -> Prepared:
    """Return the cells of :func:`small_grid`."""
    return prepare(small_grid(*algorithms, **keys), NODES)


def one_cell(entry: str | dict[str, Any], **keys: Any) -> tuple[Trial, Embeddings, Any]:
    """Return the only cell of such a grid, ready to train, with its data and its algorithm."""
    prepared = small_cells(entry, **keys)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    trial = trial.given(data)
    return (
        trial,
        data,
        build_algorithm(
            trial.cell.algorithm,
            trial.cell.params,
            trial.task,
        ),
    )


def score_probe(x_train: Any, y_train: Any, x_test: Any, y_test: Any, probe_c: float) -> Scores:
    """Return the scores of the evaluation's probe, trained and tested on these examples."""
    classes = 1 + int(max(y_train.max(), y_test.max(initial=0)))
    return scores_of(
        probe_predictions(
            fit_probe(x_train, y_train, probe_c),
            x_test,
            y_test,
            classes,
        )
    )


def digits_of_sites(folder: Path) -> Path:
    """Write a file with a column ``site``: a third of the examples is north's, half south's."""
    digits = load(DatasetSpec(name="digits", limit=300))
    x = np.concatenate([digits.x_train, digits.x_test[:150]])
    y = np.concatenate([digits.y_train, digits.y_test[:150]])
    site = np.array(SITES)[
        np.array([0, 1, 1, 0, 1, 2])[np.random.default_rng(0).integers(6, size=len(y))]
    ]
    split = np.repeat([0, 2], [300, 150])
    path = folder / "sites.npz"
    np.savez(path, x=x, y=y, split=split, site=site)
    return path


def digits_of_writers(folder: Path, **columns: Any) -> Path:
    """The digits of sites with a column ``writer``: one row to eleven of one site each, training
    and test rows apart.
    """
    path = digits_of_sites(folder)
    with np.load(path, allow_pickle=False) as file:
        held = dict(file)
    order = np.lexsort((held["site"], held["split"]))
    held = {name: values[order] for name, values in held.items()}
    rng = np.random.default_rng(0)
    begins = rng.random(len(order)) < 0.5
    begins[0] = True
    for name in ("site", "split"):
        begins[1:] |= held[name][1:] != held[name][:-1]
    held["writer"] = np.char.add("w", np.cumsum(begins).astype(np.str_))
    np.savez(path, **(held | columns))
    return path


def centred_at(mean: Tensor, scale: float = 1.0) -> Tensors:
    """Return coordinates without a direction that has a scale of its own."""
    none = mean.new_zeros(len(mean), 0)
    parts = {
        "mean": mean,
        "basis": none,
        "shrink": none.T @ none,
        "stretch": none.T @ none,
        "scale": mean.new_tensor(scale),
    }
    return {"mean": mean} | {f"{PREFIX}{name}": value for name, value in parts.items()}
