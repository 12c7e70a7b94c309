"""The limits that no partition of the data can escape, checked before one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.partition.groups import parts_of
from fedsim.partition.schemes import SCHEMES
from fedsim.partition.schemes.scheme import Division
from fedsim.partition.spec import PartitionSpec


def check_partition(y: NDArray[np.int64], *, spec: PartitionSpec, clients: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Check the limits that no partition of these data can escape, before one is made.

    Args:
        y: labels int64 ``[n]``.
        spec: the scheme and its parameters.
        clients: how many.
        columns: values per training row.

    Raises:
        UserError: too few rows, classes or column values for so many clients; no such column; a group in two clients. Its place is a
            grid's key (``clients``, ``partition.column``, ``partition.together``).
    """
    if clients < 1:
        raise UserError("clients", f"{clients} is not positive", "give at least 1 client")
    parts = parts_of(y, columns, spec)
    need, least, things, there = clients * spec.min_size, f"{spec.min_size} (partition.min_size)", spec.things, len(parts.y)
    if need > there:
        arithmetic = f"{clients} clients × {least} = {need} {things}, but there are {there} training {things}"
        if spec.min_size > there:
            raise UserError("partition.min_size", arithmetic, f"give at most {there // clients or 1}")
        raise UserError("clients", arithmetic, f"give at most {there // spec.min_size} clients")
    SCHEMES[spec.scheme].check(Division(parts.y, parts.columns, clients, spec.min_size, spec.given))
