"""The label-by-client matrix of a partition, with its place in a grid, and the file of a run folder
that holds some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass

from fedsim.errors import UserError
from fedsim.files import replaced

MOST_PANELS = 12
"""So many matrices are drawn at most."""


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """How many rows of each label each client holds. Exact counts of real data: a diagnostic, not
    private.

    Attributes:
        dataset, scheme, alpha, clients, seed: the partition's place in the grid; alpha is None
            where the scheme has none.
        fingerprint: the partition's.
        counts: int64 ``[clients, classes]``.
        classes: what the classes are called.
        sites: what the clients are called; empty where they have no names.
    """

    dataset: str
    scheme: str
    alpha: float | None
    clients: int
    seed: int
    fingerprint: str
    counts: Annotated[
        NDArray[np.int64], PlainValidator(np.asarray), PlainSerializer(np.ndarray.tolist)
    ]
    classes: tuple[str, ...]
    sites: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the clients are called: their sites, or their numbers."""
        return self.sites or tuple(map(str, range(self.clients)))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each client."""
        return np.asarray(self.counts.sum(axis=1), np.int64)


_FILE: TypeAdapter[Sequence[LabelMatrix]] = TypeAdapter(list[LabelMatrix])


def write_partitions(path: Path, matrices: Sequence[LabelMatrix]) -> None:
    """Write matrices into a file, replacing an older one at once."""
    with replaced(path) as part:
        part.write_bytes(_FILE.dump_json(matrices) + b"\n")


def read_partitions(path: Path) -> Sequence[LabelMatrix]:
    """What ``write_partitions`` wrote; empty where there is no such file."""
    try:
        if path.exists():
            return _FILE.validate_json(path.read_bytes(), strict=True)
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), "this is not a file of partitions that fedsim wrote", "remove it"
        ) from error
