"""Rows that are both for training and for testing, found by the hash of their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError


def overlapping(digests: Sequence[bytes], split: NDArray[np.int64], name: Callable[[int], str], *, drop: bool) -> NDArray[np.int64]:
    """The training rows that have the same content as a test row, to be dropped.

    Args:
        digests: a content hash per row.
        split: 0 = train, 2 = test.
        name: what a message calls a row.
        drop: whether they are dropped; otherwise there may be none.

    Raises:
        UserError: there are some and they are not to be dropped; with how many, and the first pair.
    """
    tested = {digests[row]: row for row in np.flatnonzero(split == TEST)[::-1].tolist()}
    both = [row for row in np.flatnonzero(split == TRAIN).tolist() if digests[row] in tested]
    if both and not drop:
        what = f"{len(both)} training rows are test rows too, the first is {name(both[0])}, the same as {name(tested[digests[both[0]]])}"
        raise UserError("", what, "give overlap: drop to leave them out of training, or overlap: keep")
    return np.array(both, dtype=np.int64)
