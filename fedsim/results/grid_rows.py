"""Which of a run folder's rows are of its grid: the rows of reports, comparisons and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.json_lines import dump, read_document
from fedsim.results.folder import RunFolder
from fedsim.results.join import Entry, Line, Lines
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore

FORMAT = 3
"""Of a run folder, as its manifest has it; no other is read."""


class _Manifest(BaseModel):
    """What is read of a manifest, and must be so."""

    cells: list[_Cell] | None = None
    refused: list[_Refused] | None = None
    methods: list[_Method] = []
    hardware: dict[str, Any] = {}
    versions: dict[str, str] = {}


class _Cell(BaseModel):
    cell_id: str
    label: str
    training_id: str | None = None
    ceiling: str = ""
    local_only: str = ""
    audit: str | None = None


class _Method(BaseModel):
    label: str
    text: str
    source: str


class _Refused(BaseModel):
    algorithm: str
    error: str


@dataclass(frozen=True)
class GridResults:
    """The results of a run folder, for the cells of its grid; all of its files are read once.

    Result lines of earlier grids and of older code stay in a run folder, so that a grid can shrink and grow, and an edit be undone,
    without running cells again.
    """

    run: RunFolder
    lines: Lines
    entries: list[Entry]
    listed: bool
    """Whether the manifest lists the cells."""

    @cached_property
    def rows(self) -> list[Row]:
        """See :func:`grid_rows`."""
        rows = self.lines.rows(self.entries)
        return rows if self.listed else newest(rows)

    @cached_property
    def trainings(self) -> dict[str, Line]:
        """The line of every cell's training, by the cell's id."""
        known = [*every_entry(self.lines), *self.entries]
        return {entry.cell_id: self.lines.trainings[entry.training_id] for entry in known if entry.training_id in self.lines.trainings}

    def rounds(self) -> list[dict[str, Any]]:
        """See :func:`grid_rounds`."""
        rounds = ResultStore(self.run.path).rounds()
        return [{"cell_id": entry.cell_id, **record} for entry in self.entries for record in rounds.get(entry.training_id, ())]

    def clients(self) -> list[dict[str, Any]]:
        """A line a client of the cells that were judged by clients."""
        return self.lines.clients(self.entries)

    def audits(self) -> list[dict[str, Any]]:
        """A line a cell whose claim was audited; cells of one claim share theirs."""
        audited = ((entry.cell_id, self.lines.audit_of(entry)) for entry in self.entries)
        return [{"cell_id": cell_id, **line} for cell_id, line in audited if line is not None]

    def every_row(self) -> list[Row]:
        """See :func:`every_row`."""
        known = {entry.training_id: entry for entry in [*every_entry(self.lines), *self.entries]}
        return [self.lines.trained_row(known[training]) for training in self.lines.trainings]

    def write(self) -> None:
        """Write ``results.jsonl`` and ``clients.jsonl`` anew, each at once."""
        _write(self.run.results, [row.to_json() for row in self.rows])
        clients = self.clients()
        if clients or self.run.clients.exists():
            _write(self.run.clients, list(map(dump, clients)))


def read_results(folder: Path | str) -> GridResults:
    """The results of a run folder.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    run = RunFolder(Path(folder))
    lines = Lines.read(folder)
    return GridResults(run, lines, entries(folder, lines), read_manifest(run.path).get("cells") is not None)


def grid_rows(folder: Path | str) -> list[Row]:
    """The rows of the cells that the manifest lists, in its order and with its labels; without a manifest those of :func:`newest`.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    return read_results(folder).rows


def grid_rounds(folder: Path | str) -> list[dict[str, Any]]:
    """The round records of the cells that the manifest lists, with their cell's id, by cell and in order of the round.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    return read_results(folder).rounds()


def every_row(folder: Path | str) -> list[Row]:
    """A row for every training in a folder, those of earlier grids too; of one that was not judged without scores.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    return read_results(folder).every_row()


def newest(rows: Sequence[Row]) -> list[Row]:
    """The rows that were judged as the last one was, by the code of their algorithm that wrote last."""
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
    cells = [Entry(line["cell_id"], line["training_id"], lines.trainings[line["training_id"]]["cell"]["label"]) for line in judged]
    known = {entry.training_id for entry in cells}
    others = {training: line["cell"] for training, line in lines.trainings.items() if training not in known}
    return cells + [Entry(cell["cell_id"], training, cell["label"]) for training, cell in others.items()]


def _write(path: Path, texts: Sequence[str]) -> None:
    with replaced(path) as part:
        part.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none.

    Raises:
        UserError: it is not a JSON object, what is read of it is not what a bench writes, or an older fedsim wrote it.
    """
    path = RunFolder(folder).manifest
    if not path.exists():
        return {}
    try:
        manifest: dict[str, Any] = read_document(path)
        _Manifest.model_validate(manifest, strict=True)
    except ValueError as error:
        hint = "restore it; without it, report shows the newest rows, and nothing can be judged or verified"
        raise UserError(str(path), "this is not a manifest that fedsim wrote", hint) from error
    if "versions" in manifest and manifest.get("format") != FORMAT:
        what = f"is of fedsim {manifest['versions'].get('fedsim')}, and this version reads run folders from 0.3 on"
        raise UserError(str(folder), what, "read it with the version that wrote it, or run its grid again in a new folder")
    return manifest
