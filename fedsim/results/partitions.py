"""The file of partitions in a run folder: who held what."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.json_lines import read_document
from fedsim.partition.matrix import LabelMatrix
from fedsim.results.folder import RunFolder


class _Matrix(BaseModel):
    """What is drawn of a matrix, and must be so."""

    dataset: str
    scheme: str
    alpha: float | None
    clients: int = Field(ge=1)
    counts: list[list[int]]
    classes: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> _Matrix:
        if [len(each) for each in self.counts] != [len(self.classes)] * self.clients:
            raise ValueError("counts are not [clients, classes]")
        return self


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
        found = read_document(path)
        TypeAdapter(list[_Matrix]).validate_python(found, strict=True)
        return [LabelMatrix.from_json(values) for values in found]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(str(path), "this is not a file of partitions that fedsim wrote", "remove it") from error
