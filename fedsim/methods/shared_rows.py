"""Embeddings that stay in the memory that all workers share, and are copied when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PooledRows:
    """The embeddings of all members ``[N, d]``, one member after another.

    Args:
        values: the embeddings of a data set ``[n, d]``, which are only read.
        numbers: the numbers of the members' rows in ``values`` ``[N]``, int64.
    """

    def __init__(self, values: NDArray[np.float32], numbers: Tensor) -> None:
        self.values = values
        self.numbers = numbers

    def __len__(self) -> int:
        """Return N."""
        return len(self.numbers)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return a copy of some rows, in memory that torch has aligned.

        Args:
            rows: a slice, or positions among the N rows in a tensor of any shape ``[...]``.

        Returns:
            The rows ``[..., d]``.
        """
        numbers = self.numbers[rows]
        copied = torch.empty(*numbers.shape, self.values.shape[1])
        # Numbers are valid, and without "clip" NumPy would make another copy.
        np.take(self.values, numbers.numpy(), axis=0, out=copied.numpy(), mode="clip")
        return copied


class MemberRows(Sequence[Tensor]):
    """Each member's embeddings ``[n, d]``; they are copied whenever one looks at a member.

    Args:
        pool: the embeddings of all members.
        parts: the part of the pool that is each member's.
    """

    def __init__(self, pool: PooledRows, parts: Sequence[slice]) -> None:
        self.pool = pool
        self.parts = parts

    @classmethod
    def of(cls, values: NDArray[np.float32], rows: Sequence[NDArray[np.int64]]) -> MemberRows:
        """Return the members' rows of a data set.

        Args:
            values: the embeddings of the data set ``[n, d]``.
            rows: the numbers of each member's rows.
        """
        ends = list(accumulate(map(len, rows), initial=0))
        numbers = torch.from_numpy(np.concatenate(rows))
        return cls(PooledRows(values, numbers), list(map(slice, ends, ends[1:])))

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.parts)

    @overload
    def __getitem__(self, members: int) -> Tensor: ...

    @overload
    def __getitem__(self, members: slice) -> MemberRows: ...

    def __getitem__(self, members: int | slice) -> Tensor | MemberRows:
        """Return the rows of a member, or those of several members for a slice."""
        if isinstance(members, slice):
            return MemberRows(self.pool, self.parts[members])
        return self.pool[self.parts[members]]
