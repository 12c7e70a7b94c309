"""Defines the label-by-client matrix of a partition, and reads and writes files of such matrices.

A run folder has one such file. ``fedsim`` draws the matrices to show how unequal the clients of a
grid are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer, PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from fedsim.data.split import Integers
from fedsim.errors import UserError
from fedsim.files import replaced

MOST_PANELS = 12
"""The most matrices that one picture shows; with more, each would be too small to read."""


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """The number of examples of each label that each client holds.

    These are exact counts of real data without noise, so no epsilon covers them.

    Attributes:
        dataset, scheme, alpha, clients, seed: the partition's place in the grid; alpha is None
            if the scheme does not use it.
        fingerprint: the fingerprint of the partition.
        counts: the number of examples by client and label, int64 ``[clients, classes]``.
        classes: the names of the classes.
        sites: the names of the clients; empty if they have none.
    """

    dataset: str
    scheme: str
    alpha: float | None
    clients: int
    seed: int
    fingerprint: str
    counts: Annotated[Integers, PlainValidator(np.asarray), PlainSerializer(np.ndarray.tolist)]
    classes: tuple[str, ...]
    sites: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the clients: their sites, or their numbers."""
        return self.sites or tuple(map(str, range(self.clients)))


_MATRICES: TypeAdapter[Sequence[LabelMatrix]] = TypeAdapter(list[LabelMatrix])


def write_partitions(path: Path, matrices: Sequence[LabelMatrix]) -> None:
    """Write matrices to a file; an older file is replaced in one step."""
    with replaced(path) as temporary:
        temporary.write_bytes(_MATRICES.dump_json(matrices) + b"\n")


def read_partitions(path: Path) -> Sequence[LabelMatrix]:
    """Return the matrices that ``write_partitions`` wrote; empty if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        if not path.exists():
            return []
        return _MATRICES.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise UserError(
            str(path),
            "cannot be read, or is not a file that fedsim wrote",
            "remove it; the next `fedsim bench` of the grid writes it again",
        ) from error
