"""Which of a run folder's rows are of its grid: the rows of reports, comparisons and frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.json_lines import complete_lines, decode, dump, load, read_document, reasons
from fedsim.results.folder import RunFolder
from fedsim.results.join import Entry, Lines
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore


class _Manifest(BaseModel):
    """What is read of a manifest, and must be so."""

    cells: list[_Cell] | None = None
    refused: list[_Refused] | None = None
    methods: list[_Method] = []
    hardware: dict[str, Any] = {}


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


@dataclass(frozen=True)
class OlderResults:
    """The same of a run folder of fedsim 0.1, whose rows were written one by one; it is read for one release more, and not written."""

    run: RunFolder

    @cached_property
    def rows(self) -> list[Row]:
        """Those of the manifest's cells, the last of each; without a manifest those of :func:`newest`."""
        latest = {row.cell_id: row for row in self.every_row()}
        cells = read_manifest(self.run.path).get("cells")
        if cells is None:
            return newest(list(latest.values()))
        return [latest[cell["cell_id"]].model_copy(update={"label": cell["label"]}) for cell in cells if cell["cell_id"] in latest]

    def rounds(self) -> list[dict[str, Any]]:
        """As they stand there."""
        return list(_older_lines(self.run.lines("rounds"), _decoded))

    def clients(self) -> list[dict[str, Any]]:
        """As they stand there."""
        return list(_older_lines(self.run.clients, _decoded))

    def audits(self) -> list[dict[str, Any]]:
        """None: its rows have what there was."""
        return []

    def every_row(self) -> list[Row]:
        """The last row of every cell, in the order of these."""
        latest: dict[str, Row] = {}
        for row in _older_lines(self.run.results, _older_row):
            latest.pop(row.cell_id, None)
            latest[row.cell_id] = row
        return list(latest.values())

    def write(self) -> None:
        """Nothing: its files are the only ones that there are."""


def read_results(folder: Path | str) -> GridResults | OlderResults:
    """The results of a run folder.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    run = RunFolder(Path(folder))
    if is_older(folder):
        return OlderResults(run)
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


def is_older(folder: Path | str) -> bool:
    """Whether a run folder is of fedsim 0.1."""
    run = RunFolder(Path(folder))
    return run.results.exists() and not run.lines("trainings").exists()


_Read = TypeVar("_Read")


def _older_lines(path: Path, read: Callable[[Any], _Read]) -> Iterator[_Read]:
    for number, line in complete_lines(path):
        try:
            yield read(load(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}", f"this line cannot be read ({'; '.join(reasons(error))})", "remove the line") from error


def _older_row(fields: dict[str, Any]) -> Row:
    known = {name: value for name, value in fields.items() if name in Row.columns()}
    return Row.model_validate(known | {"params": decode(known["params"])})


def _decoded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "cell_id" else decode(value) for name, value in fields.items()}


def _write(path: Path, texts: Sequence[str]) -> None:
    with replaced(path) as part:
        part.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


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
        hint = "restore it; without it, report shows the newest rows, and nothing can be judged or verified"
        raise UserError(str(path), "this is not a manifest that fedsim wrote", hint) from error
    return manifest
