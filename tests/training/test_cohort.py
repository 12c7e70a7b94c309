"""The memory of a cohort's examples."""

import numpy as np
import pytest
import torch

from fedsim.device import CPU
from fedsim.methods.clients import joined
from fedsim.methods.parameters import ALIGNMENT
from fedsim.training.cohort import client_values


@pytest.mark.parametrize(("dim", "shared"), [(16, True), (5, False)])
def test_clients_share_one_tensor_if_their_parts_are_aligned(dim: int, shared: bool) -> None:
    values = np.random.default_rng(0).standard_normal((90, dim), dtype=np.float32)
    values.flags.writeable = False
    rows = (np.arange(7), np.arange(0), np.arange(89, 20, -3))
    parts = client_values(values, rows, CPU)
    for part, numbers in zip(parts, rows, strict=True):
        np.testing.assert_array_equal(part.numpy(), values[numbers])
        assert part.data_ptr() % ALIGNMENT == 0
    whole = joined(parts)
    assert torch.equal(whole, torch.cat(parts))
    assert (whole.data_ptr() == parts[0].data_ptr()) == shared


def test_parts_in_another_order_are_copied() -> None:
    first, second = torch.arange(8.0).split(4)
    assert joined([second, first]).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
