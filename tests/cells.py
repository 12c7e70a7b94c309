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

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.scores import Scores, probe_predictions, scores_of
from fedsim.evidence.check.subject import BRIEF
from fedsim.grid.models import Grid
from fedsim.methods.messages import Task
from fedsim.models.probe import fit_probe
from fedsim.plugins.registry import GROUP, lookup
from fedsim.runs.prepare import Prepared, prepare
from fedsim.runs.worker import Node
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Trial

NODES = [Node(4.0, 0.0)]
WITH_GPUS = [Node(4.0, 2.0)]
"""The same machine with two GPUs by count: what is placed on them computes on the CPU."""
SHIPPED = sorted(entry.name for entry in entry_points(group=GROUP))
"""Algorithms by name; tests may have registered others."""


def crossed(quickly: Callable[..., bool], *axes: Iterable[Any]) -> list[Any]:
    """All combinations of the axes, for a test's parameters; those that are not run ``quickly`` are left to the slow tests."""
    return [pytest.param(*values, marks=() if quickly(*values) else pytest.mark.slow) for values in product(*axes)]


def quick(name: str, **params: Any) -> dict[str, Any]:
    """An entry of ``algorithms`` that trains for a moment."""
    return {"name": name, "params": lookup(name).Params.brief(BRIEF, params) | params}


@cache
def public_digits() -> dict[str, str]:
    """Digits with noise, which are nobody's rows, as a grid's ``public``."""
    from sklearn.datasets import load_digits

    x = load_digits().data
    path = Path(mkdtemp()) / "public.npz"
    np.savez(path, x=(x + np.random.default_rng(0).standard_normal(x.shape)).astype(np.float32))
    return {"npz": str(path), "name": "noisy digits"}


def uses_public(entry: Any) -> bool:
    """Whether an entry of ``algorithms`` needs public rows; a class is not asked, and one with a mistake needs none."""
    if isinstance(entry, type):
        return False
    name, params = (entry, {}) if isinstance(entry, str) else (entry["name"], entry.get("params", {}))
    cls = lookup(name)
    try:
        return cls(cls.Params.model_validate(params), Task(64, 10, 4)).uses_public()
    except (TypeError, ValidationError):
        return False


def small_grid(*algorithms: str | dict[str, Any], **keys: Any) -> Grid:
    """A grid on 200 rows of digits, 4 clients, with public rows where a method uses them."""
    entries = [quick(entry) if isinstance(entry, str) else entry for entry in algorithms]
    base = {"dataset": {"name": "digits", "limit": 200}, "clients": 4, "alpha": 1.0, "evaluation": {"per_class": 10}}
    base |= {"public": public_digits()} if any(map(uses_public, entries)) else {}
    return Grid.model_validate({**base, "algorithms": entries, **keys})


def small_cells(*algorithms: str | dict[str, Any], **keys: Any) -> Prepared:
    """Its cells."""
    return prepare(small_grid(*algorithms, **keys), NODES)


def one_cell(entry: str | dict[str, Any], **keys: Any) -> tuple[Trial, Embeddings, Any]:
    """The only cell of such a grid, ready to train: its trial, its data and its algorithm."""
    prepared = small_cells(entry, **keys)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    trial = trial.given(data)
    return trial, data, build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)


def score_probe(x_train: Any, y_train: Any, x_test: Any, y_test: Any, probe_c: float) -> Scores:
    """The scores, over real test rows, of the evaluation's probe on training rows."""
    classes = 1 + int(max(y_train.max(), y_test.max(initial=0)))
    return scores_of(probe_predictions(fit_probe(x_train, y_train, probe_c), x_test, y_test, classes))
