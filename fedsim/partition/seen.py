"""What clients see: under feature shift every one its rows through an affine map of its own; and the test rows that each is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.partition.partition import Partition
from fedsim.partition.spec import PartitionSpec
from fedsim.seeds import Purpose, Seeds

_SHIFT_RANK = 8


def shift_of(client: int, dim: int, strength: float, seed: int) -> tuple[NDArray[np.float32], ...]:
    """A client's affine map ``x -> gain * x + (x left) right^T + offset``: gain, left ``[d, r]``, right ``[d, r]``, offset, of the seed.

    Gains are log-normal, ``exp(strength * N(0, 1))``, as of instruments that were calibrated apart, with mean square 1; the map of rank 8
    and the offset have norm ``strength`` and random directions.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    left, right = (np.linalg.qr(rng.standard_normal((dim, min(_SHIFT_RANK, dim))))[0] for _ in range(2))
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    return tuple(part.astype(np.float32) for part in (gain, strength * left, right, strength * offset))


def apply_shift(x: NDArray[np.float32], client: int, *, strength: float, seed: int) -> NDArray[np.float32]:
    """Shift a client's unit rows ``[n, d]`` and scale each back to unit norm; at strength 0 they come back unchanged."""
    if strength == 0:
        return x
    gain, left, right, offset = shift_of(client, x.shape[1], strength, seed)
    moved = gain * x + (x @ left) @ right.T + offset
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


@dataclass(frozen=True, eq=False)
class OwnRows:
    """What each client is called, its site or its number; the test rows int64 that it is judged on, and the same in words.

    A site that has no test rows has none.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    words: str


def own_rows(data: Embeddings, partition: Partition, spec: PartitionSpec) -> OwnRows:
    """The test rows of the client's site, under a scheme with sites; those that it sees, where it sees values of its own; else all."""
    clients, every = len(partition.rows), np.arange(len(data.y_test))
    names = site_names(data, partition, spec)
    if spec.column is not None:
        sites = _sites(data, partition, spec.column)
        test_sites = data.test_columns[spec.column].astype(np.str_)
        nobodys = np.count_nonzero(~np.isin(test_sites, sites))
        words = f"the test rows with its {spec.column}" + (f"; {nobodys} test rows are of no client's {spec.column}" if nobodys else "")
        return OwnRows(names, tuple(np.flatnonzero(test_sites == site) for site in sites), words)
    names = names or tuple(map(str, range(clients)))
    if spec.shifts:
        rows = tuple(every[client::clients] for client in range(clients))
        return OwnRows(names, rows, f"every {clients}th test row, as the client sees it")
    return OwnRows(names, (every,) * clients, "all test rows")


def site_names(data: Embeddings, partition: Partition, spec: PartitionSpec) -> tuple[str, ...]:
    """Every client's site, with its number where several are of one site; empty under a scheme without sites."""
    if spec.column is None:
        return ()
    sites = _sites(data, partition, spec.column)
    return tuple(sites) if len(set(sites)) == len(sites) else tuple(f"{site} {client}" for client, site in enumerate(sites))


def _sites(data: Embeddings, partition: Partition, column: str) -> list[str]:
    return [str(data.columns[column][rows[0]]) for rows in partition.rows]
