"""The limits that no partition of the data can escape, checked before one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError, nearest
from fedsim.partition.spec import PartitionSpec


def check_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    clients: int,
    columns: Mapping[str, NDArray[Any]],
    place: Callable[[str], str] = str,
) -> None:
    """Check the limits that no partition of these data can escape, before one is made.

    Args:
        y: labels int64 ``[n]``.
        spec: the scheme and its parameters.
        clients: how many.
        columns: values per training row.
        place: the text that names a grid key (``clients``, ``partition.column``) in an error.

    Raises:
        UserError: too few rows, classes or column values for so many clients; no such column.
    """
    if clients < 1:
        raise UserError(place("clients"), f"{clients} is not positive", "give at least 1 client")
    need, least = clients * spec.min_size, f"{spec.min_size} (partition.min_size)"
    if need > len(y):
        arithmetic = f"{clients} clients × {least} = {need} rows, but there are {len(y)} training rows"
        raise UserError(place("clients"), arithmetic, f"give at most {len(y) // spec.min_size} clients")
    if spec.scheme == "disjoint":
        counts = np.bincount(y)
        if clients > len(counts):
            what = f"{clients} clients cannot have disjoint labels with {len(counts)} classes"
            raise UserError(place("clients"), what, f"give at most {len(counts)} clients")
        if counts.min() < spec.min_size:
            what = f"class {counts.argmin()} has {counts.min()} rows, fewer than {least}"
            raise UserError(place("partition.min_size"), what, f"give at most {counts.min()}")
    if spec.scheme == "shards":
        _check_shards(np.bincount(y), int(spec.labels or 0), clients, place)
    if spec.scheme == "column":
        _check_column(str(spec.column), spec.min_size, clients, columns, place)


def _check_shards(counts: NDArray[np.int64], labels: int, clients: int, place: Callable[[str], str]) -> None:
    classes, shards = len(counts), clients * labels
    if labels > classes:
        what = f"a client cannot hold {labels} labels, the data set has {classes} classes"
        raise UserError(place("partition.labels"), what, f"give at most {classes}")
    if shards < classes:
        what = f"{clients} clients × {labels} labels = {shards} shards cannot hold {classes} classes, so some would vanish"
        raise UserError(place("partition.labels"), what, f"give at least {-(-classes // clients)}")
    most = int(np.minimum(counts, clients).sum())
    if shards > most:
        what = f"{clients} clients × {labels} labels = {shards} shards, but small classes allow {most} at most"
        raise UserError(place("partition.labels"), what, f"give at most {most // clients}")


def _check_column(name: str, min_size: int, clients: int, columns: Mapping[str, NDArray[Any]], place: Callable[[str], str]) -> None:
    if name not in columns:
        raise UserError(place("partition.column"), f"the data set has no column '{name}'", nearest(name, columns))
    values, counts = np.unique(columns[name], return_counts=True)
    if len(values) != clients:
        what = f"column '{name}' has {len(values)} values, so {len(values)} clients, not {clients}"
        raise UserError(place("clients"), what, f"give clients: {len(values)}")
    if counts.min() < min_size:
        what = f"value '{values[counts.argmin()]}' of column '{name}' has {counts.min()} rows, fewer than {min_size}"
        raise UserError(place("partition.min_size"), what, f"give at most {counts.min()}")
