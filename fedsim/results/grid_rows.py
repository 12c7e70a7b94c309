"""Which of a run folder's rows are of its grid: the rows of reports, comparisons and frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import read_document
from fedsim.results.folder import RunFolder
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore

if TYPE_CHECKING:
    import pandas as pd


class _Manifest(BaseModel):
    """What is read of a manifest, and must be so."""

    cells: list[_Cell] | None = None
    refused: list[_Refused] | None = None
    hardware: dict[str, Any] = {}


class _Cell(BaseModel):
    cell_id: str
    label: str


class _Refused(BaseModel):
    algorithm: str
    error: str


def load_results(folder: Path | str) -> pd.DataFrame:
    """The rows of a run folder's grid as a frame: a column for every field of ``Row``, numbers as float64 (missing: NaN).

    Rows are those of :func:`grid_rows`.

    Raises:
        UserError: the folder has no results, or a line is not a row.
    """
    import pandas as pd

    ResultStore(folder).folder.check()
    frame = pd.DataFrame([row.model_dump() for row in grid_rows(Path(folder))], columns=Row.columns())
    numbers = [name for name, field in Row.model_fields.items() if field.annotation in (float | None, int | None)] + list(MEASURES)
    return frame.astype(dict.fromkeys(numbers, "float64"))


def grid_rows(folder: Path) -> list[Row]:
    """The rows of the cells that the manifest lists, in its order and with its labels; without a manifest those of :func:`newest`.

    Rows of earlier grids and of older code stay in a run folder's results, so that a grid can shrink and grow, and an edit be undone,
    without running cells again.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    rows = ResultStore(folder).rows()
    cells = read_manifest(folder).get("cells")
    if cells is None:
        return newest(rows)
    by_cell = {row.cell_id: row for row in rows}
    return [by_cell[cell["cell_id"]].model_copy(update={"label": cell["label"]}) for cell in cells if cell["cell_id"] in by_cell]


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows that were judged as the last one was, each by the code of its algorithm that wrote last."""
    sources = {row.algorithm: row.source for row in rows}
    return [row for row in rows if row.source == sources[row.algorithm] and row.evaluation == rows[-1].evaluation]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none.

    Raises:
        UserError: it is not a JSON object, or what is read of it is not what a bench writes.
    """
    path = RunFolder(folder).manifest
    if not path.exists():
        return {}
    try:
        manifest: dict[str, Any] = read_document(path)
        _Manifest.model_validate(manifest, strict=True)
    except ValueError as error:
        right = "restore it; without it, report shows the newest rows, and nothing can be judged or verified"
        raise UserError(str(path), "this is not a manifest that fedsim wrote", right) from error
    return manifest
