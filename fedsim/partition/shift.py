"""Feature shift: every client sees its rows through an affine map of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.partition.partition import Partition
from fedsim.partition.spec import PartitionSpec
from fedsim.seeds import Purpose, Seeds

_SHIFT_RANK = 8


class ClientShift(NamedTuple):
    """A client's affine map ``x -> gain * x + (x left) right^T + offset``: gain, offset ``[d]`` and left, right ``[d, r]``, float32."""

    gain: NDArray[np.float32]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    offset: NDArray[np.float32]


def shift_of(client: int, dim: int, strength: float, seed: int) -> ClientShift:
    """A random gain for every of ``dim`` features, a random map of rank <= 8, and a random direction, of a client of a partition's seed.

    Gains are log-normal, ``exp(strength * N(0, 1))``, as of instruments that were calibrated apart, with mean square 1; map and direction
    have norm ``strength``.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    left, right = (np.linalg.qr(rng.standard_normal((dim, min(_SHIFT_RANK, dim))))[0] for _ in range(2))
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    single = (part.astype(np.float32) for part in (gain, strength * left, right, strength * offset))
    return ClientShift(*single)


def apply_shift(x: NDArray[np.float32], client: int, *, strength: float, seed: int) -> NDArray[np.float32]:
    """Shift a client's unit rows ``[n, d]`` and scale each back to unit norm; at strength 0 they come back unchanged."""
    if strength == 0:
        return x
    shift = shift_of(client, x.shape[1], strength, seed)
    moved = shift.gain * x + (x @ shift.left) @ shift.right.T + shift.offset
    return unit_norm(moved.astype(np.float32, copy=False))


def as_seen(data: Embeddings, partition: Partition, spec: PartitionSpec, seed: int) -> Embeddings:
    """Every training row as its client sees it; the data set itself where clients see values as they are.

    Test rows stand for all clients alike: row i is seen by client ``i mod clients``.
    """
    if not spec.shifts:
        return data
    x_train, x_test, clients = data.x_train.copy(), data.x_test.copy(), len(partition.rows)
    for client, rows in enumerate(partition.rows):
        x_train[rows] = apply_shift(data.x_train[rows], client, strength=spec.strength, seed=seed)
        x_test[client::clients] = apply_shift(data.x_test[client::clients], client, strength=spec.strength, seed=seed)
    return replace(data, x_train=x_train, x_test=x_test)
