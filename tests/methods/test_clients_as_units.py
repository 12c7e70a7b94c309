"""Statistics whose units are clients: what one client can change, and how examples count."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import SHIPPED, one_cell

from fedsim.data.embeddings import Embeddings
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.one_shot import OneShot, Rows
from fedsim.plugins.registry import lookup
from fedsim.privacy.statistics import moments
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.trial import Trial, local_pool, run_trial

ONE_SHOT = [
    name for name in SHIPPED if issubclass(lookup(name), OneShot) and "client" in lookup(name).units
]
"""The shipped algorithms of statistics that protect clients."""


def broadcasts_of(
    trial: Trial,
    data: Embeddings,
) -> list[tuple[Round, Tensors]]:
    """Return the rounds of a training and what clients received in them."""
    broadcasts = []

    def recording_pool(*arguments: Any) -> LocalPool:
        pool = local_pool(*arguments)
        compute = pool.round

        def recorded(round_: Round, broadcast: Tensors) -> list[Message]:
            broadcasts.append((round_, broadcast))
            return compute(round_, broadcast)

        pool.round = recorded  # type: ignore[method-assign]
        return pool

    list(run_trial(trial, data, recording_pool))
    return broadcasts


@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_client_changes_sums_by_at_most_the_sensitivity(name: str) -> None:
    """Compare the sums with and without a client, for the same broadcasts.

    The client has few rows, many, the same one many times, or none.
    """
    trial, data, algorithm = one_cell(
        name,
        unit="client",
        epsilon=4.0,
    )
    assert trial.plan is not None
    assert trial.plan.unit == "client"
    assert trial.plan.claim == "proved"
    assert algorithm.clips_clients()
    broadcasts = broadcasts_of(trial, data)
    first, *others = trial.partition.rows
    nothing = first[:0]
    deviations = np.abs(data.x_train - data.x_train.mean(0))
    outlier = int(deviations.sum(1).argmax())
    everything = np.concatenate(trial.partition.rows)
    limit = trial.plan.sensitivity * (1 + 1e-5)
    for rows in (
        first[:1],
        first,
        everything,
        np.full(300, outlier),
        nothing,
    ):
        whole = cohort(trial, data, rows, *others)
        without = cohort(trial, data, nothing, *others)
        for round_, broadcast in broadcasts:
            sums = whole.round(round_, broadcast).sums
            rest = without.round(round_, broadcast).sums
            changes = [(sums[name] - rest[name]).norm() for name in sums]
            change = float(torch.stack(changes).norm())
            assert change <= limit
            assert (change > 0.1) == (len(rows) > 0), round_.release.name


def cohort(
    trial: Trial,
    data: Embeddings,
    *rows: np.ndarray,
) -> Cohort:
    changed = replace(
        trial,
        partition=replace(trial.partition, rows=rows),
        sizes=(len(rows),),
    )
    (spec,) = changed.cohorts()
    return Cohort(spec, data.x_train, data.y_train)


def test_examples_of_a_client_and_label_count_as_one() -> None:
    x = torch.eye(4)
    y = torch.tensor([0, 0, 1, 0])
    rows = Rows(
        x,
        y,
        client=torch.tensor([0, 0, 0, 1]),
    )
    products = moments.class_mean_products(x, y, 2)
    sums = rows.by_label(products, 2)["class_sums"]
    of_cells = torch.zeros(2, 4).index_add(
        0,
        sums.cell,
        sums.left * sums.right,
    )
    expected = [
        [0.5, 0.5, 0.0, 1.0],
        [0.0, 0.0, 1.0, 0.0],
    ]
    torch.testing.assert_close(of_cells, torch.tensor(expected))


def test_clients_without_examples_have_empty_products() -> None:
    labels = torch.zeros(0, dtype=torch.long)
    rows = Rows(torch.zeros(0, 4), labels, labels)
    products = moments.mean_products(rows.x)
    sums = rows.by_label(products, 2)["sum"]
    assert sums.left.shape == (0, 1)
