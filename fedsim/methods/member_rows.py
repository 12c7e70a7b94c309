"""Defines views of a data set in memory that workers share; they copy only rows that are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.device import CPU


class PooledRows:
    """The embeddings of all members ``[N, d]``, one member after another.

    Of a tensor's operations it has only indexing and :meth:`index_select`, which select rows.

    Args:
        values: the embeddings of a data set ``[n, d]``, in row-major order. They are only read.
        numbers: for each of the N rows its number in ``values``, int64.
    """

    def __init__(self, values: NDArray[np.float32], numbers: Tensor) -> None:
        self.values = values
        self.numbers = numbers

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return a copy of some rows.

        Args:
            rows: a slice, or positions among the N rows in a tensor of any shape ``[...]``.

        Returns:
            The rows ``[..., d]``.
        """
        return _copy_rows(self.values, self.numbers[rows])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return copies of the rows at the positions ``index`` ``[m]``, as a tensor does.

        Args:
            dim: the dimension to select from, always 0.
            index: positions among the N rows; negative ones are refused.
        """
        return _copy_rows(self.values, self.numbers.index_select(dim, index))


class MemberRows(Sequence[Tensor]):
    """Each member's embeddings: ``x[i]`` is a new copy of the rows of member i.

    Args:
        values: the embeddings of a data set ``[n, d]``, in row-major order. They are only read.
        numbers: for each member the numbers of its rows in ``values``, int64.
    """

    def __init__(self, values: NDArray[np.float32], numbers: Sequence[Tensor]) -> None:
        self.values = values
        self.numbers = numbers

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.numbers)

    @overload
    def __getitem__(self, members: int) -> Tensor: ...

    @overload
    def __getitem__(self, members: slice) -> MemberRows: ...

    def __getitem__(self, members: int | slice) -> Tensor | MemberRows:
        """Return a copy of one member's rows; for a slice, a view of these members, not a copy."""
        if isinstance(members, slice):
            return MemberRows(self.values, self.numbers[members])
        return _copy_rows(self.values, self.numbers[members])


def _copy_rows(values: NDArray[np.float32], numbers: Tensor) -> Tensor:
    """Return copies of the rows with these numbers, in new memory on the CPU.

    Torch aligns that memory, and the last bits of a matrix product may depend on alignment.
    """
    rows = torch.empty(*numbers.shape, values.shape[1], dtype=torch.float32, device=CPU)
    # By default NumPy checks the row numbers, for which it fills a buffer and then copies it. The
    # mode "clip" avoids this copy. It clips nothing, because a partition's row numbers are valid.
    np.take(values, numbers.numpy(), axis=0, out=rows.numpy(), mode="clip")
    return rows
