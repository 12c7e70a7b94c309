"""A run folder's results: the left join of its lines by their keys, for the cells of its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.dataclasses import dataclass as checked

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.json_lines import dump, load, plain_json, reasons
from fedsim.plugins.claims import Check, check_of
from fedsim.results.columns import Line, Row, row_of
from fedsim.results.store import RESTORE, ResultStore, RunFolder

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
    """

    cell_id: str
    training_id: str
    label: str
    ceiling: str = ""
    local_only: str = ""


@dataclass(frozen=True)
class RunResults:
    """All result lines of a run folder, by their keys, and the cells of its grid; files are read
    once.

    Lines of earlier grids and of older code stay in a run folder, so that a grid can shrink and
    grow, and an edit be undone, without running cells again.

    Attributes:
        entries: the cells that the manifest lists, those kept of earlier grids last; without one a
            cell for every judgement.
    """

    folder: RunFolder
    trainings: Mapping[str, Line] = field(default_factory=dict)
    judgements: Mapping[str, Line] = field(default_factory=dict)
    references: Mapping[str, Line] = field(default_factory=dict)
    audits: Sequence[Line] = ()
    checks: Sequence[Line] = ()
    entries: Sequence[Entry] = ()

    def row(self, entry: Entry, *, judged: bool = True) -> Row | None:
        """The row of a cell, or with ``judged=False`` the row as its training left it; None while
        that is not finished.
        """
        training = self.trainings.get(entry.training_id)
        if training is None:
            return None
        if judged and training["error"] is None:
            judgement = self.judgements.get(entry.cell_id)
        else:
            judgement = None
        if judged and judgement is None and training["error"] is None:
            return None
        references = {
            name: self.references.get(getattr(entry, name)) for name in ("ceiling", "local_only")
        }
        found: dict[str, Any] = {
            **references,
            "audit": self.audit_of(training),
            "check": self._check_of(training),
        }
        return row_of(entry.cell_id, entry.label, training, judgement, **found)

    def audit_of(self, training: Line) -> Line | None:
        """What all audits of a training's claim say: a refutation stands whatever came later.

        Of several audits it is the strongest one's line, with the largest bound of them all.
        """
        claim = claim_of(training["cell"])
        lines = [line for line in self.audits if line["claim"] == claim]
        if not lines:
            return None
        # of equals the last one, which has the most pairs
        strongest = max(reversed(lines), key=lambda line: (line["refuted"], line["epsilon_lower"]))
        return {**strongest, "epsilon_lower": max(line["epsilon_lower"] for line in lines)}

    def _check_of(self, training: Line) -> Check | None:
        """What checks in the run folder say of a training's code and parameters, of a search of all
        that it tries.
        """
        cell = training["cell"]
        plan = training["plan"]
        checks = [check for check in self.checks if check["source"] == cell["source"]]
        if plan is None or not checks:
            return None
        space = (cell.get("tuning") or {}).get("space", {})
        settings = (
            {**cell["params"], **dict(zip(space, point, strict=True))}
            for point in product(*space.values())
        )
        said = {check_of(checks, cell["unit"], cell["trust"], params) for params in settings}
        # a search is as well founded as the weakest of its trainings
        if "failed" in said:
            return "failed"
        if None in said:
            return None
        return "passed"

    def rows_of(self, entries: Sequence[Entry]) -> list[Row]:
        """The rows of those cells that are finished, in order."""
        return [row for row in map(self.row, entries) if row is not None]

    @cached_property
    def rows(self) -> list[Row]:
        """The finished rows of the cells that the manifest lists, in its order and with its
        labels.
        """
        return self.rows_of(self.entries)

    @cached_property
    def every_entry(self) -> list[Entry]:
        """The cells whose training has ended, those of earlier grids first; the latter by their
        judgements, and without references.
        """
        judged = {line["training_id"]: line["cell_id"] for line in self.judgements.values()}
        ids = [
            (line["cell_id"], line["training_id"])
            for line in self.judgements.values()
            if line["training_id"] in self.trainings
        ]
        ids += [
            (line["cell"]["cell_id"], training)
            for training, line in self.trainings.items()
            if training not in judged
        ]
        others = [
            Entry(cell, training, self.trainings[training]["cell"]["label"])
            for cell, training in ids
        ]
        return others + [entry for entry in self.entries if entry.training_id in self.trainings]

    def every_row(self) -> list[Row]:
        """A row for every training in the folder, those of earlier grids too; of one that was not
        judged without scores.
        """
        known = {entry.training_id: entry for entry in self.every_entry}
        rows = (
            self.row(known[training]) or self.row(known[training], judged=False)
            for training in self.trainings
        )
        return [row for row in rows if row is not None]

    @cached_property
    def trained(self) -> dict[str, Line]:
        """The line of every cell's training, by the cell's id."""
        return {entry.cell_id: self.trainings[entry.training_id] for entry in self.every_entry}

    def rounds(self) -> list[dict[str, Any]]:
        """The round records of these cells, with their cell's id, by cell and in order of the
        round.
        """
        rounds = ResultStore(self.folder.path).rounds()
        return [
            {"cell_id": entry.cell_id, **record}
            for entry in self.entries
            for record in rounds.get(entry.training_id, ())
        ]

    def clients(self) -> list[dict[str, Any]]:
        """A line a client of the cells that were judged by clients, with what it reaches by itself
        where that is known.
        """
        lines = []
        for entry in self.entries:
            floor = self.references.get(entry.local_only)
            for client in self.judgements.get(entry.cell_id, {}).get("clients", ()):
                if floor:
                    alone = floor["clients"][client["client"]]
                else:
                    alone = None
                if client["test_rows"]:
                    reason = {}
                else:
                    reason = {"reason": "it has no test row"}
                lines.append(
                    {
                        "cell_id": entry.cell_id,
                        **client,
                        "local_only_balanced_accuracy": alone,
                        **reason,
                    }
                )
        return lines

    def audit_lines(self) -> list[dict[str, Any]]:
        """A line a cell whose claim was audited; cells of one claim share theirs."""
        ended = {
            entry.cell_id: self.trainings[entry.training_id]
            for entry in self.entries
            if entry.training_id in self.trainings
        }
        return [
            {"cell_id": cell_id, **line}
            for cell_id, training in ended.items()
            if (line := self.audit_of(training)) is not None
        ]

    def write(self) -> None:
        """Write ``results.jsonl`` and ``clients.jsonl`` anew, each at once."""
        clients = self.clients()
        _write(self.folder.results, [row.values for row in self.rows])
        if clients or self.folder.clients.exists():
            _write(self.folder.clients, clients)


def id_of_run(line: Line) -> str:
    """The id of the training that ran for a line, which cells that are equal share."""
    # Lines of earlier versions do not say: each then counts as a training of its own.
    ran: str = line.get("equal_to") or line["training_id"]
    return ran


def claim_of(cell: Mapping[str, Any]) -> str:
    """What an audit is of, as one text: a cell's code, parameters, unit, trust, ε and δ."""
    facts = [
        cell[name]
        for name in ("source", "algorithm", "params", "unit", "trust", "epsilon", "delta")
    ]
    if (tuning := cell.get("tuning")) is not None:  # what a search chose is no part of its claim
        facts[2] = [
            {name: value for name, value in cell["params"].items() if name not in tuning["space"]},
            tuning,
        ]
    return dump(facts)


def read_results(folder: Path | str) -> RunResults:
    """The results of a run folder."""
    manifest = read_manifest(Path(folder))
    store = ResultStore(folder)
    lines = (
        store.last("trainings"),
        store.last("judgements"),
        store.last("references"),
    )
    # every audit and check counts, not only the last one of a key
    audits = list(store.lines("audits"))
    results = RunResults(store.folder, *lines, audits, list(store.lines("checks")))
    return replace(
        results,
        entries=[Entry(**cell) for cell in listed(manifest)]
        if "cells" in manifest
        else results.every_entry,
    )


def listed(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of the manifest's grid, then those that its page keeps of earlier grids."""
    return [*manifest["cells"], *manifest.get("kept", ())]


class _Manifest(BaseModel):
    """What is read of a manifest, and must be so."""

    cells: list[Entry] | None = None
    kept: list[Entry] = []
    refused: list[dict[Literal["algorithm", "error"], str]] | None = None
    methods: list[dict[Literal["label", "text", "source"], str]] = []
    hardware: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty where there is none."""
    path = RunFolder(folder).manifest
    if not path.exists():
        return {}
    try:
        _Manifest.model_validate_json(content := path.read_bytes(), strict=True)
        manifest: dict[str, Any] = load(content)
    except (OSError, ValueError) as error:
        raise UserError(
            str(path), f"cannot be read ({'; '.join(reasons(error))})", RESTORE
        ) from error
    if "versions" in manifest and manifest.get("format") != FORMAT:
        what = (
            f"is of fedsim {manifest['versions'].get('fedsim')}, and this version reads run "
            "folders from 0.3 on"
        )
        raise UserError(
            str(folder),
            what,
            "read it with the version that wrote it, or run its grid again in a new folder",
        )
    return manifest


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with replaced(path) as part:
        part.write_text("".join(f"{plain_json(line)}\n" for line in lines), encoding="utf-8")
