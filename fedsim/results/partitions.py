"""The file of partitions in a run folder: who held what."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fedsim.atomic import replaced
from fedsim.errors import UserError
from fedsim.partition.matrix import LabelMatrix
from fedsim.results.folder import RunFolder
from fedsim.results.lines import read_document


def write_partitions(folder: RunFolder, matrices: Sequence[LabelMatrix]) -> None:
    """Write ``partitions.json`` into a run folder, replacing an older one at once."""
    with replaced(folder.partitions) as part:
        part.write_text("[\n" + ",\n".join(json.dumps(matrix.to_json()) for matrix in matrices) + "\n]\n", encoding="utf-8")


def read_partitions(folder: RunFolder) -> list[LabelMatrix]:
    """What ``write_partitions`` wrote; empty where there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder.partitions
    if not path.exists():
        return []
    try:
        return [LabelMatrix.from_json(values) for values in read_document(path)]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(str(path), "this is not a file of partitions that fedsim wrote", "remove it") from error
