"""A partition: which rows each client holds, and the limits that none can escape."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.partition.groups import parts_of
from fedsim.partition.schemes import OWNERS, Division, check
from fedsim.partition.spec import PartitionSpec
from fedsim.seeds import Purpose, Seeds


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows each client holds.

    Attributes:
        rows: an int64 array of training row numbers per client, sorted, or sorted within groups; disjoint, together all rows.
        fingerprint: 16 hex digits of what the clients hold.
        label_counts: int64 ``[clients, classes]``.
        scheme: the scheme that made it.
        groups: where rows stay together: the number of each row's group within its client, ascending from 0.
    """

    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str
    label_counts: NDArray[np.int64]
    scheme: str
    groups: tuple[NDArray[np.int64], ...] | None = None


def check_partition(y: NDArray[np.int64], *, spec: PartitionSpec, clients: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Check the limits that no partition of labels ``y`` ``[n]`` and columns, values per training row, can escape, before one is made."""
    if clients < 1:
        raise UserError("clients", f"{clients} is not positive", "give at least 1 client")
    parts = parts_of(y, columns, spec)
    need, least, things, there = clients * spec.min_size, f"{spec.min_size} (partition.min_size)", spec.things, len(parts.y)
    if need > there:
        arithmetic = f"{clients} clients × {least} = {need} {things}, but there are {there} training {things}"
        if spec.min_size > there:
            raise UserError("partition.min_size", arithmetic, f"give at most {there // clients or 1}")
        raise UserError("clients", arithmetic, f"give at most {there // spec.min_size} clients")
    check(Division(parts.y, parts.columns, clients, spec))


def make_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    alpha: float,
    clients: int,
    seed: int,
    columns: Mapping[str, NDArray[Any]],
) -> Partition:
    """Divide training rows with labels ``y`` ``[n]``, 0 .. C-1, among clients; alpha > 0 is the concentration of the schemes that use one.

    ``columns`` are values per training row, for schemes by column and for groups that stay together.
    """
    check_partition(y, spec=spec, clients=clients, columns=columns)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    parts = parts_of(y, columns, spec)
    owner = OWNERS[spec.scheme](Division(parts.y, parts.columns, clients, spec, alpha), rng)[parts.part]
    order = np.lexsort((parts.part, owner))
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    classes = int(y.max()) + 1
    label_counts = np.bincount(owner * classes + y, minlength=clients * classes).reshape(clients, classes)
    digest = hashlib.sha256(f"{len(y)} {sizes.tolist()}".encode())
    digest.update(order.tobytes())
    groups = None
    if spec.together is not None:
        groups = tuple(np.unique(parts.part[own], return_inverse=True)[1] for own in rows)
        digest.update(np.concatenate(groups).tobytes())
    if spec.shifts and spec.strength:
        digest.update(f"shift {spec.strength!r} {seed}".encode())  # equal rows, other values
    return Partition(rows, digest.hexdigest()[:16], label_counts, spec.scheme, groups)
