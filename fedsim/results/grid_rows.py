"""Which of a run folder's rows are of its grid: the rows of reports, comparisons and frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.json_lines import complete_lines, decode, dump, load, read_document, reasons
from fedsim.results.folder import RunFolder
from fedsim.results.join import Entry, Lines
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
    training_id: str | None = None
    ceiling: str = ""
    local_only: str = ""
    audit: str | None = None


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
    frame = pd.DataFrame([row.model_dump() for row in grid_rows(folder)], columns=Row.columns())
    numbers = [name for name, field in Row.model_fields.items() if field.annotation in (float | None, int | None)] + list(MEASURES)
    return frame.astype(dict.fromkeys(numbers, "float64"))


def grid_rows(folder: Path | str) -> list[Row]:
    """The rows of the cells that the manifest lists, in its order and with its labels; without a manifest those of :func:`newest`.

    Result lines of earlier grids and of older code stay in a run folder, so that a grid can shrink and grow, and an edit be undone,
    without running cells again.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if is_older(folder):
        return _older_rows(Path(folder))
    return _rows(folder, Lines.read(folder))


def _rows(folder: Path | str, lines: Lines) -> list[Row]:
    rows = lines.rows(entries(folder, lines))
    return newest(rows) if read_manifest(Path(folder)).get("cells") is None else rows


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows that were judged as the last one was, each by the code of its algorithm that wrote last."""
    sources = {row.algorithm: row.source for row in rows}
    return [row for row in rows if row.source == sources[row.algorithm] and row.evaluation == rows[-1].evaluation]


def entries(folder: Path | str, lines: Lines) -> list[Entry]:
    """The cells that the manifest lists; without one a cell for every judgement.

    Raises:
        UserError: the manifest cannot be read.
    """
    cells = read_manifest(Path(folder)).get("cells")
    return every_entry(lines) if cells is None else [Entry(**cell) for cell in cells]


def every_entry(lines: Lines) -> list[Entry]:
    """A cell for every judgement, without references; and for every training that failed or was not judged one of its own id."""
    judged = [line for line in lines.judgements.values() if line["training_id"] in lines.trainings]
    found = [Entry(line["cell_id"], line["training_id"], lines.trainings[line["training_id"]]["cell"]["label"]) for line in judged]
    known = {entry.training_id for entry in found}
    others = {training: line["cell"] for training, line in lines.trainings.items() if training not in known}
    return found + [Entry(cell["cell_id"], training, cell["label"]) for training, cell in others.items()]


def is_older(folder: Path | str) -> bool:
    """Whether a run folder is of fedsim 0.1, whose rows were written one by one; they are read for one release more."""
    run = RunFolder(Path(folder))
    return run.results.exists() and not run.lines("trainings").exists()


def _older_rows(folder: Path, *, listed: bool = True) -> list[Row]:
    latest: dict[str, Row] = {}
    path = RunFolder(folder).results
    for number, line in complete_lines(path):
        try:
            fields = load(line)
            known = {name: value for name, value in fields.items() if name in Row.columns()}
            row = Row.model_validate(known | {"params": decode(known["params"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}", f"this line cannot be read ({'; '.join(reasons(error))})", "remove the line") from error
        latest.pop(row.cell_id, None)
        latest[row.cell_id] = row
    cells = read_manifest(folder).get("cells")
    if not listed:
        return list(latest.values())
    if cells is None:
        return newest(list(latest.values()))
    return [latest[cell["cell_id"]].model_copy(update={"label": cell["label"]}) for cell in cells if cell["cell_id"] in latest]


def every_row(folder: Path | str) -> list[Row]:
    """A row for every training in a folder, those of earlier grids too; of one that was not judged without scores.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if is_older(folder):
        return _older_rows(Path(folder), listed=False)
    lines = Lines.read(folder)
    listed = {entry.training_id: entry for entry in [*every_entry(lines), *entries(folder, lines)]}
    return [lines.trained_row(listed[training]) for training in lines.trainings]


def write_rows(folder: Path | str) -> list[Row]:
    """Write ``results.jsonl`` and ``clients.jsonl`` anew from the result lines, each at once.

    Returns:
        The rows.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if is_older(folder):
        return _older_rows(Path(folder))
    run, lines = RunFolder(Path(folder)), Lines.read(folder)
    cells = entries(folder, lines)
    rows, clients = _rows(folder, lines), lines.clients(cells)
    _write(run.results, [row.to_json() for row in rows])
    if clients or run.clients.exists():
        _write(run.clients, list(map(dump, clients)))
    return rows


def _write(path: Path, texts: Sequence[str]) -> None:
    with replaced(path) as part:
        part.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def grid_rounds(folder: Path | str) -> list[dict[str, Any]]:
    """The round records of the cells that the manifest lists, each with its cell's id, by cell and in order of the round.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if is_older(folder):
        return list(_older_lines(RunFolder(Path(folder)).lines("rounds")))
    lines, rounds = Lines.read(folder), ResultStore(folder).rounds()
    return [{"cell_id": e.cell_id, **record} for e in entries(folder, lines) for record in rounds.get(e.training_id, ())]


def grid_clients(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of clients of the cells that the manifest lists.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    if is_older(folder):
        return list(_older_lines(RunFolder(Path(folder)).clients))
    lines = Lines.read(folder)
    return lines.clients(entries(folder, lines))


def _older_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in complete_lines(path):
        try:
            yield {name: value if name == "cell_id" else decode(value) for name, value in load(line).items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}:{number}", f"this line cannot be read ({'; '.join(reasons(error))})", "remove the line") from error


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
