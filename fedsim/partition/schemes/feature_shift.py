"""Feature shift: every client sees its rows through an affine map of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.data.normalise import unit_norm
from fedsim.partition.schemes.scheme import Scheme, SchemeParams
from fedsim.partition.schemes.sizes import iid
from fedsim.seeds import Purpose, Seeds

_SHIFT_RANK = 8


class FeatureShiftParams(SchemeParams):
    """Parameters of scheme ``feature-shift``.

    Attributes:
        strength: size of each client's shift, 0 = none; at most 10, where a client's rows are hardly more than its own direction.
    """

    strength: float = Field(default=0.5, ge=0, le=10, allow_inf_nan=False, strict=True)


class ClientShift(NamedTuple):
    """A client's affine map ``x -> gain * x + (x left) right^T + offset``: gain, offset ``[d]`` and left, right ``[d, r]``, float32."""

    gain: NDArray[np.float32]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    offset: NDArray[np.float32]


def shift_of(client: int, dim: int, strength: float, seed: int) -> ClientShift:
    """The feature shift of a client: a random gain for every feature, a random map of rank <= 8, and a random direction.

    Gains are log-normal, ``exp(strength * N(0, 1))``, as of instruments that were calibrated apart, with mean square 1; map and direction
    have norm ``strength``.

    Args:
        client: number from 0.
        dim: number of features d.
        strength: >= 0; 0 is the identity.
        seed: the partition's seed.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    rank = min(_SHIFT_RANK, dim)
    left, right = (np.linalg.qr(rng.standard_normal((dim, rank)))[0] for _ in range(2))
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    return ClientShift(
        gain.astype(np.float32), (strength * left).astype(np.float32), right.astype(np.float32), (strength * offset).astype(np.float32)
    )


def apply_shift(x: NDArray[np.float32], client: int, *, strength: float, seed: int) -> NDArray[np.float32]:
    """Shift a client's rows and scale each back to unit norm.

    Args:
        x: float32 ``[n, d]``, unit rows.
        client: number from 0.
        strength: >= 0; at 0 the rows come back unchanged.
        seed: the partition's seed.

    Returns:
        float32 ``[n, d]``.
    """
    if strength == 0:
        return x
    shift = shift_of(client, x.shape[1], strength, seed)
    moved = shift.gain * x + (x @ shift.left) @ shift.right.T + shift.offset
    return unit_norm(moved.astype(np.float32, copy=False))


def _of_strength(x: NDArray[np.float32], client: int, given: FeatureShiftParams, seed: int) -> NDArray[np.float32]:
    return apply_shift(x, client, strength=given.strength, seed=seed)


FEATURE_SHIFT = Scheme(iid, params=FeatureShiftParams, map_rows=_of_strength)
