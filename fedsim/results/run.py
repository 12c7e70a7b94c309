"""A run folder's results: the left join of its lines by their keys, for the cells of its grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.dataclasses import dataclass as checked

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.json_lines import dump, load
from fedsim.plugins.claims import Check, check_of
from fedsim.results.columns import Line, Row, row_of
from fedsim.results.store import ResultStore, RunFolder

FORMAT = 3
"""Of a run folder, as its manifest has it; no other is read."""


@checked(frozen=True)
class Entry:
    """A cell of a grid, by the keys of the lines that its row is joined of.

    Attributes:
        cell_id: its judgement's.
        training_id: its training's.
        label: what tables and curves call its algorithm.
        ceiling, local_only: its references'.
        audit: of the audit that the grid asks for; without a line of it the last audit of the same claim counts.
    """

    cell_id: str
    training_id: str
    label: str
    ceiling: str = ""
    local_only: str = ""
    audit: str | None = None


@dataclass(frozen=True)
class Lines:
    """All result lines of a run folder, by their keys."""

    trainings: Mapping[str, Line]
    judgements: Mapping[str, Line]
    references: Mapping[str, Line]
    audits: Mapping[str, Line] = field(default_factory=dict)
    checks: Sequence[Line] = ()

    @classmethod
    def read(cls, folder: Path | str) -> Lines:
        """Those of a folder.

        Raises:
            UserError: a line cannot be read.
        """
        store = ResultStore(folder)
        trainings, judgements, references = store.last("trainings"), store.last("judgements"), store.last("references")
        return cls(trainings, judgements, references, store.last("audits"), list(store.lines("checks")))

    def row(self, entry: Entry, *, judged: bool = True) -> Row | None:
        """The row of a cell, or with ``judged=False`` the row as its training left it; None while that is not finished."""
        training = self.trainings.get(entry.training_id)
        if training is None:
            return None
        judgement = self.judgements.get(entry.cell_id) if judged and training["error"] is None else None
        if judged and judgement is None and training["error"] is None:
            return None
        ceiling, local_only = self.references.get(entry.ceiling), self.references.get(entry.local_only)
        return row_of(entry.cell_id, entry.label, training, judgement, ceiling, local_only, self.audit_of(entry), self.check(training))

    def audit_of(self, entry: Entry) -> Line | None:
        """The audit of a trained cell's claim."""
        if not self.audits:
            return None
        return self.audits.get(entry.audit or "") or self._audits_of.get(claim_of(self.trainings[entry.training_id]["cell"]))

    def rows(self, entries: Sequence[Entry]) -> list[Row]:
        """The rows of those cells that are finished, in order."""
        return [row for row in map(self.row, entries) if row is not None]

    def every_entry(self) -> list[Entry]:
        """A cell for every judgement, without references; and for every training that failed or was not judged one of its own id."""
        judged = [line for line in self.judgements.values() if line["training_id"] in self.trainings]
        cells = [Entry(line["cell_id"], line["training_id"], self.trainings[line["training_id"]]["cell"]["label"]) for line in judged]
        known = {entry.training_id for entry in cells}
        others = {training: line["cell"] for training, line in self.trainings.items() if training not in known}
        return cells + [Entry(cell["cell_id"], training, cell["label"]) for training, cell in others.items()]

    @cached_property
    def _audits_of(self) -> dict[str, Line]:
        """The last audit of every claim."""
        return {line["claim"]: line for line in self.audits.values()}

    def check(self, training: Line) -> Check | None:
        """What checks in the run folder say of a training's code and parameters, of a search of all that it tries."""
        cell, plan = training["cell"], training["plan"]
        checks = [check for check in self.checks if check["source"] == cell["source"]]
        if plan is None or not checks:
            return None
        space = (cell.get("tuning") or {}).get("space", {})
        settings = ({**cell["params"], **dict(zip(space, point, strict=True))} for point in product(*space.values()))
        said = {check_of(checks, cell["unit"], cell["trust"], params) for params in settings}
        # a search is as well founded as the weakest of its trainings
        return "failed" if "failed" in said else None if None in said else "passed"


def claim_of(cell: Mapping[str, Any]) -> str:
    """What an audit is of, as one text: a cell's code, parameters, unit, trust, ε and δ."""
    facts = [cell[name] for name in ("source", "algorithm", "params", "unit", "trust", "epsilon", "delta")]
    if (tuning := cell.get("tuning")) is not None:  # what a search chose is no part of its claim
        facts[2] = [{name: value for name, value in cell["params"].items() if name not in tuning["space"]}, tuning]
    return dump(facts)


@dataclass(frozen=True)
class RunResults:
    """The results of a run folder, for the cells of its grid; all of its files are read once.

    Lines of earlier grids and of older code stay in a run folder, so that a grid can shrink and grow, and an edit be undone, without
    running cells again.
    """

    run: RunFolder
    lines: Lines
    entries: list[Entry]

    @cached_property
    def rows(self) -> list[Row]:
        """The finished rows of the cells that the manifest lists, in its order and with its labels."""
        return self.lines.rows(self.entries)

    @property
    def every_entry(self) -> list[Entry]:
        """The cells whose training has ended, those of earlier grids first."""
        return [entry for entry in [*self.lines.every_entry(), *self.entries] if entry.training_id in self.lines.trainings]

    def every_row(self) -> list[Row]:
        """A row for every training in the folder, those of earlier grids too; of one that was not judged without scores."""
        known = {entry.training_id: entry for entry in self.every_entry}
        rows = (self.lines.row(entry) or self.lines.row(entry, judged=False) for entry in map(known.__getitem__, self.lines.trainings))
        return [row for row in rows if row is not None]

    @cached_property
    def trainings(self) -> dict[str, Line]:
        """The line of every cell's training, by the cell's id."""
        return {entry.cell_id: self.lines.trainings[entry.training_id] for entry in self.every_entry}

    def rounds(self) -> list[dict[str, Any]]:
        """The round records of these cells, with their cell's id, by cell and in order of the round."""
        rounds = ResultStore(self.run.path).rounds()
        return [{"cell_id": entry.cell_id, **record} for entry in self.entries for record in rounds.get(entry.training_id, ())]

    def clients(self) -> Iterator[dict[str, Any]]:
        """A line a client of the cells that were judged by clients, with what it reaches by itself where that is known."""
        for entry in self.entries:
            floor = self.lines.references.get(entry.local_only)
            for client in self.lines.judgements.get(entry.cell_id, {}).get("clients", ()):
                alone = floor["clients"][client["client"]] if floor else None
                reason = {} if client["test_rows"] else {"reason": "it has no test row"}
                yield {"cell_id": entry.cell_id, **client, "local_only_balanced_accuracy": alone, **reason}

    def audits(self) -> list[dict[str, Any]]:
        """A line a cell whose claim was audited; cells of one claim share theirs."""
        audited = ((entry.cell_id, self.lines.audit_of(entry)) for entry in self.entries if entry.training_id in self.lines.trainings)
        return [{"cell_id": cell_id, **line} for cell_id, line in audited if line is not None]

    def write(self) -> None:
        """Write ``results.jsonl`` and ``clients.jsonl`` anew, each at once."""
        clients = list(self.clients())
        _write(self.run.results, [row.values for row in self.rows])
        if clients or self.run.clients.exists():
            _write(self.run.clients, clients)


def read_results(folder: Path | str) -> RunResults:
    """The results of a run folder.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    lines = Lines.read(folder)
    return RunResults(RunFolder(Path(folder)), lines, entries(folder, lines))


def entries(folder: Path | str, lines: Lines) -> list[Entry]:
    """The cells that the manifest lists; without one a cell for every judgement.

    Raises:
        UserError: the manifest cannot be read.
    """
    cells = read_manifest(Path(folder)).get("cells")
    return lines.every_entry() if cells is None else [Entry(**cell) for cell in cells]


class _Manifest(BaseModel):
    """What is read of a manifest, and must be so."""

    cells: list[Entry] | None = None
    refused: list[dict[Literal["algorithm", "error"], str]] | None = None
    methods: list[dict[Literal["label", "text", "source"], str]] = []
    hardware: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none.

    Raises:
        UserError: it is not a JSON object, what is read of it is not what a bench writes, or an older fedsim wrote it.
    """
    path = RunFolder(folder).manifest
    if not path.exists():
        return {}
    try:
        _Manifest.model_validate_json(content := path.read_bytes(), strict=True)
        manifest: dict[str, Any] = load(content)
    except (OSError, ValueError) as error:
        hint = "restore it, or run the grid again in a new folder"
        raise UserError(str(path), "this is not a manifest that fedsim wrote", hint) from error
    if "versions" in manifest and manifest.get("format") != FORMAT:
        what = f"is of fedsim {manifest['versions'].get('fedsim')}, and this version reads run folders from 0.3 on"
        raise UserError(str(folder), what, "read it with the version that wrote it, or run its grid again in a new folder")
    return manifest


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with replaced(path) as part:
        part.write_text("".join(f"{dump(line)}\n" for line in lines), encoding="utf-8")
