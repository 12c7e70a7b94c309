"""A partition: which rows each client holds, with its fingerprint and its label-by-client matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.partition.limits import check_partition
from fedsim.partition.schemes import SCHEMES, Division
from fedsim.partition.spec import PartitionSpec
from fedsim.seeds import Purpose, Seeds


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows each client holds.

    Attributes:
        rows: one sorted int64 array of training row numbers per client; disjoint, together all rows.
        fingerprint: 16 hex digits of what the clients hold.
        label_counts: int64 ``[clients, classes]``.
        scheme: the scheme that made it.
    """

    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str
    label_counts: NDArray[np.int64]
    scheme: str


def make_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    alpha: float,
    clients: int,
    seed: int,
    columns: Mapping[str, NDArray[Any]],
    place: Callable[[str], str] = str,
) -> Partition:
    """Divide the training rows among clients.

    Args:
        y: labels int64 ``[n]``, 0 .. C-1.
        spec: the scheme and its parameters.
        alpha: concentration of the schemes ``dirichlet`` and ``dirichlet-client``, > 0; the other schemes ignore it.
        clients: how many.
        seed: of the partition.
        columns: values per training row, for scheme ``column``.
        place: the text that names a grid key (``clients``, ``partition.column``) in an error.

    Raises:
        UserError: the data do not allow it (see ``check_partition``).
    """
    check_partition(y, spec=spec, clients=clients, columns=columns, place=place)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    try:
        owner = SCHEMES[spec.scheme](Division(y, columns, spec, alpha, clients, rng))
    except UserError as error:
        raise UserError(place(error.where), error.what, error.right) from error
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    classes = int(y.max()) + 1
    label_counts = np.bincount(owner * classes + y, minlength=clients * classes).reshape(clients, classes)
    digest = hashlib.sha256(f"{len(y)} {sizes.tolist()}".encode())
    digest.update(order.tobytes())
    if spec.strength > 0:
        digest.update(f"shift {spec.strength!r} {seed}".encode())  # equal rows, other values
    return Partition(rows, digest.hexdigest()[:16], label_counts, spec.scheme)
