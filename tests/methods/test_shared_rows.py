"""Embeddings that are copied out of a shared data set when they are read."""

from dataclasses import replace

import numpy as np
import torch

from fedsim.methods.clients import Clients
from fedsim.methods.parameters import ALIGNMENT
from fedsim.methods.shared_rows import MemberRows
from tests.methods.test_clients import clients

NUMBERS = (np.arange(7), np.arange(0), np.arange(89, 20, -3), np.array([4, 4]))
VALUES = np.random.default_rng(0).standard_normal((90, 5), dtype=np.float32)
VALUES.flags.writeable = False


def cohort() -> Clients:
    y = tuple(map(torch.from_numpy, NUMBERS))
    return replace(clients(), x=MemberRows.of(VALUES, NUMBERS), y=y)


def test_every_member_has_its_rows_in_aligned_memory() -> None:
    x = cohort().x
    for part, numbers in zip(x, NUMBERS, strict=True):
        np.testing.assert_array_equal(part.numpy(), VALUES[numbers])
        assert part.data_ptr() % ALIGNMENT == 0
    assert [len(part) for part in x[1:3]] == [0, 23]


def test_what_is_done_to_a_copy_does_not_reach_the_data() -> None:
    x = cohort().x
    x[0].zero_()
    np.testing.assert_array_equal(x[0].numpy(), VALUES[:7])


def test_the_pool_has_the_members_rows_in_their_order() -> None:
    pooled = cohort().pooled
    everything = VALUES[np.concatenate(NUMBERS)]
    np.testing.assert_array_equal(pooled.x[5:9].numpy(), everything[5:9])
    some = torch.tensor([[31, 0], [7, 30]])
    np.testing.assert_array_equal(pooled.x[some].numpy(), everything[some.numpy()])


def test_some_members_have_the_same_rows_in_a_batch() -> None:
    some = cohort().only([3, 0])
    batch = some.batch([torch.tensor([1]), torch.tensor([0, 6])], 1, {})
    np.testing.assert_array_equal(batch.x.numpy(), VALUES[[4, 0, 6]])
    first, second = some.batches([torch.tensor([1]), torch.tensor([0, 6])], 1, {})
    assert torch.equal(torch.cat([first.x, second.x]), batch.x)
