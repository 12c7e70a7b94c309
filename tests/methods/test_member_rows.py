"""Embeddings that are copied out of a shared data set when they are read."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.methods.member_rows import MemberRows
from fedsim.methods.parameters import ALIGNMENT
from fedsim.privacy.statistics.outer_products import BLOCK
from tests.methods.test_clients import Doubled, clients

NUMBERS = (
    np.arange(7),
    np.arange(0),
    np.arange(89, 20, -3),
    np.array([4, 4]),
)
VALUES = np.random.default_rng(0).standard_normal(
    (90, 5),
    dtype=np.float32,
)
VALUES.flags.writeable = False


def cohort() -> Clients:
    numbers = tuple(map(torch.from_numpy, NUMBERS))
    return replace(
        clients(),
        x=MemberRows(VALUES, numbers),
        y=numbers,
    )


def assert_rows(rows: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(rows.numpy(), expected)


def test_every_member_has_its_rows_in_aligned_memory() -> None:
    x = cohort().x
    for member_rows, numbers in zip(x, NUMBERS, strict=True):
        assert_rows(member_rows, VALUES[numbers])
        assert member_rows.data_ptr() % ALIGNMENT == 0
    lengths = [len(member_rows) for member_rows in x[1:3]]
    assert lengths == [0, 23]


def test_what_is_done_to_a_copy_does_not_reach_the_data() -> None:
    x = cohort().x
    x[0].zero_()
    assert_rows(x[0], VALUES[:7])


def test_the_pool_has_the_members_rows_in_their_order() -> None:
    pooled = cohort().pooled
    everything = VALUES[np.concatenate(NUMBERS)]
    assert_rows(pooled.x[5:9], everything[5:9])
    some = torch.tensor([[31, 0], [7, 30]])
    assert_rows(pooled.x[some], everything[some.numpy()])
    with pytest.raises(IndexError):
        pooled.x.index_select(0, torch.tensor([-1]))


def copied(some: Clients) -> Clients:
    return replace(some, steps=None)


@pytest.mark.parametrize(
    "view",
    [
        Clients.only,
        lambda some, which: copied(some.only(which)),
    ],
)
def test_a_batch_of_some_members_has_their_rows(
    view: Callable[[Clients, list[int]], Clients],
) -> None:
    some = view(cohort(), [3, 0])
    rows = [
        torch.tensor([1]),
        torch.tensor([0, 6]),
    ]
    batch = some.batch(rows, 1, {})
    assert_rows(batch.x, VALUES[[4, 0, 6]])
    assert batch.y.tolist() == [4, 0, 6]
    first, second = some.batches(rows, 1, {})
    joined = torch.cat([first.x, second.x])
    assert torch.equal(joined, batch.x)


def test_coordinates_of_more_rows_than_a_block_are_those_of_each_row() -> None:
    values = np.arange(
        2.0 * BLOCK + 6,
        dtype=np.float32,
    ).reshape(-1, 2)
    numbers = (
        torch.arange(2),
        torch.arange(BLOCK + 3),
    )
    several = replace(
        clients(),
        x=MemberRows(values, numbers),
        y=numbers,
    )
    whole = several.in_coordinates(Doubled())
    assert_rows(whole.x[1], 2 * values)
