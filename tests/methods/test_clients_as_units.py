"""Statistics whose units are clients: what one client can change, and what counts of several
releases are counted in.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import SHIPPED, one_cell

from fedsim.data.embeddings import Embeddings
from fedsim.methods.messages import Round, Tensors
from fedsim.methods.one_shot import OneShot, Rows
from fedsim.plugins.registry import lookup
from fedsim.privacy.statistics import moments
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.trial import Trial, local_pool, run_trial

ONE_SHOT = [
    name for name in SHIPPED if issubclass(lookup(name), OneShot) and "client" in lookup(name).units
]
"""Algorithms of statistics."""


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_client_changes_sums_by_at_most_the_sensitivity(
    name: str,
) -> None:
    """By brute force: the same broadcast, with the client and without, where it has few rows, many,
    the same one many times, or none.
    """
    trial, data, algorithm = one_cell(name, unit="client", epsilon=4.0)
    assert trial.plan is not None
    assert (trial.plan.unit, trial.plan.claim, algorithm.clips_clients()) == (
        "client",
        "proved",
        True,
    )
    broadcasts = list[tuple[Round, Tensors]]()

    def noting(*args: Any) -> LocalPool:
        pool = local_pool(*args)
        compute = pool.round
        pool.round = lambda *given: broadcasts.append(given) or compute(*given)  # type: ignore[method-assign,func-returns-value]
        return pool

    list(run_trial(trial, data, noting))
    held = trial.partition.rows
    worst = int(np.abs(data.x_train - data.x_train.mean(0)).sum(1).argmax())
    for own in (held[0][:1], held[0], np.concatenate(held), np.full(300, worst), held[0][:0]):
        with_it, without = (cohort(trial, data, (rows, *held[1:])) for rows in (own, held[0][:0]))
        for round_, broadcast in broadcasts:
            one = with_it.round(round_, broadcast).sums
            other = without.round(round_, broadcast).sums
            change = float(torch.stack([(one[key] - other[key]).norm() for key in one]).norm())
            assert change <= trial.plan.sensitivity * (1 + 1e-5)
            assert (change > 0.1) == (len(own) > 0), round_.release.name


def cohort(trial: Trial, data: Embeddings, rows: tuple[np.ndarray, ...]) -> Cohort:
    (spec,) = replace(
        trial, partition=replace(trial.partition, rows=rows), sizes=(len(rows),)
    ).cohorts()
    return Cohort(spec, data.x_train, data.y_train)


def test_examples_of_a_client_and_label_count_as_one() -> None:
    x = torch.eye(4)
    y = torch.tensor([0, 0, 1, 0])
    client = torch.tensor([0, 0, 0, 1])
    found = Rows(x, y, client).by_label(moments.class_mean_products(x, y, 2), 2)["class_sums"]
    torch.testing.assert_close(
        found.left.T @ found.right, torch.tensor([[0.5, 0.5, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    )
    none = Rows(x[:0], y[:0], client[:0])
    assert none.by_label(moments.mean_products(none.x), 2)["sum"].left.shape == (0, 1)
