"""Joins the lines of a run folder to results.

The result of a cell consists of its training line, its evaluation line, its references, and all
audits and checks of its claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.dataclasses import dataclass as checked

from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.grid.models import Published, points_of
from fedsim.json_lines import dump, load, plain_json
from fedsim.plugins.claims import Check, check_of, is_of
from fedsim.results.columns import Row, row_of
from fedsim.results.records import (
    AuditRecord,
    CheckRecord,
    EvaluationRecord,
    MembershipRecord,
    ReferenceRecord,
    TrainingRecord,
)
from fedsim.results.store import ResultStore, RunFolder, unreadable

FORMAT = 3
"""The format of a run folder, written into its manifest; no other format is read."""


@checked(frozen=True)
class Entry:
    """A cell of a grid with the keys of the lines that belong to it.

    Attributes:
        cell_id: The key of its evaluation.
        training_id: The key of its training.
        label: The name of its method in tables and curves.
        ceiling: The key of the reference on all real training examples; "" if it has none.
        local_only: The key of the reference on each client's own examples; "" if it has none.
    """

    cell_id: str
    training_id: str
    label: str
    ceiling: str = ""
    local_only: str = ""


@dataclass(frozen=True)
class RunResults:
    """All lines of a run folder by their keys, and the cells of its grid.

    Files are read once. Lines of earlier grids and of older code stay in a run folder. So a cell
    does not run again if it returns to the grid, or if an edit of its code is undone.

    Attributes:
        folder: The run folder.
        trainings: The training lines by training id.
        evaluations: The evaluation lines by cell id.
        references: The reference lines by key.
        audits: All audit lines, in the order in which they were written.
        checks: All check lines, in the order in which they were written.
        memberships: The lines of membership attacks on saved generators, by training id.
        entries: The cells of the manifest's grid, then the cells of earlier grids that the report
            still shows. Without a manifest, all trained cells of the folder.
    """

    folder: RunFolder
    trainings: Mapping[str, TrainingRecord] = field(default_factory=dict)
    evaluations: Mapping[str, EvaluationRecord] = field(default_factory=dict)
    references: Mapping[str, ReferenceRecord] = field(default_factory=dict)
    audits: Sequence[AuditRecord] = ()
    checks: Sequence[CheckRecord] = ()
    memberships: Mapping[str, MembershipRecord] = field(default_factory=dict)
    entries: Sequence[Entry] = ()

    def row(self, entry: Entry, *, evaluated: bool = True) -> Row | None:
        """Return the result of a cell, or None while it is not finished.

        A cell whose training failed is finished, too.

        Args:
            entry: The cell.
            evaluated: Whether the cell is finished only after its evaluation. If False, the
                evaluation is ignored, and the result has no scores.
        """
        training = self.trainings.get(entry.training_id)
        if training is None:
            return None
        evaluation = None
        if evaluated and training["error"] is None:
            evaluation = self.evaluations.get(entry.cell_id)
            if evaluation is None:
                return None
        return row_of(
            entry.cell_id,
            entry.label,
            training,
            evaluation,
            ceiling=self.references.get(entry.ceiling),
            local_only=self.references.get(entry.local_only),
            audit=self.audit_of(training),
            membership=self.memberships.get(entry.training_id),
            check=self._check_of(training),
        )

    def audit_of(self, training: TrainingRecord) -> AuditRecord | None:
        """Return one line for all audits of a training's claim, or None if there is none.

        It is the line of the strongest audit, in which ``epsilon_lower`` is the largest bound of
        all audits. An audit that refutes the claim is stronger than one that does not, even if the
        other one is newer. A single bound holds with a confidence of 95 %, so the largest of k
        bounds holds with a confidence of at least 100 - 5 k %.
        """
        claim = claim_of(training["cell"])
        lines = [line for line in self.audits if line["claim"] == claim]
        if not lines:
            return None
        # Of equally strong audits the last one is taken, since it has the most pairs. ``max``
        # takes the first, so the order is reversed.
        strongest: AuditRecord = max(reversed(lines), key=itemgetter("refuted", "epsilon_lower"))
        largest_bound = max(line["epsilon_lower"] for line in lines)
        return {**strongest, "epsilon_lower": largest_bound}

    def _check_of(self, training: TrainingRecord) -> Check | None:
        """Return the combined result of the checks of a training's code and parameters.

        It is None if nothing is known, or if the training is not private. For a tuned cell all
        points of its search count: the result is ``failed`` if one of them failed, and ``passed``
        only if all of them passed.
        """
        cell = training["cell"]
        checks = [check for check in self.checks if is_of(check, cell)]
        if training["plan"] is None or not checks:
            return None
        space = (cell.get("tuning") or {}).get("space", {})
        results = set()
        for point in points_of(space):
            params = {**cell["params"], **point}
            results.add(check_of(checks, cell["unit"], cell["trust"], params))
        if "failed" in results:
            return "failed"
        if None in results:
            return None
        return "passed"

    def rows_of(self, entries: Sequence[Entry]) -> list[Row]:
        """Return the results of those cells that are finished, in order."""
        return [row for row in map(self.row, entries) if row is not None]

    @cached_property
    def rows(self) -> list[Row]:
        """Return the results of the manifest's finished cells, in its order and with its labels."""
        return self.rows_of(self.entries)

    @cached_property
    def every_entry(self) -> list[Entry]:
        """Return all trained cells of the folder, in two parts.

        The first part follows from the lines of all grids that ran here, and its entries name no
        references. A training has one entry for each of its evaluations. If it was not evaluated,
        it has an entry for the cell that its line names.

        The second part holds the trained cells of the manifest. They may repeat entries of the
        first part, and replace them in a dictionary.
        """
        cells = [(line["cell_id"], line["training_id"]) for line in self.evaluations.values()]
        evaluated = {training_id for _, training_id in cells}
        for training_id, training in self.trainings.items():
            if training_id not in evaluated:
                cells.append((training["cell"]["cell_id"], training_id))
        entries = [
            Entry(cell_id, training_id, self.trainings[training_id]["cell"]["label"])
            for cell_id, training_id in cells
            if training_id in self.trainings
        ]
        return entries + [entry for entry in self.entries if entry.training_id in self.trainings]

    def every_row(self) -> list[Row]:
        """Return one result for every training in the folder, including those of earlier grids.

        The result of a training that was not evaluated has no scores.
        """
        entry_of = {entry.training_id: entry for entry in self.every_entry}
        rows = []
        for training_id in self.trainings:
            entry = entry_of[training_id]
            row = self.row(entry) or self.row(entry, evaluated=False)
            if row is not None:
                rows.append(row)
        return rows

    @cached_property
    def trained(self) -> dict[str, TrainingRecord]:
        """Return the training line of every trained cell, by cell id."""
        return {entry.cell_id: self.trainings[entry.training_id] for entry in self.every_entry}

    def rounds(self) -> list[dict[str, Any]]:
        """Return the round records of the manifest's cells, in the order of cells and rounds.

        Each of them has the ``cell_id`` of its cell.
        """
        rounds = ResultStore(self.folder.path).rounds()
        return [
            {"cell_id": entry.cell_id, **record}
            for entry in self.entries
            for record in rounds.get(entry.training_id, ())
        ]

    def clients(self) -> list[dict[str, Any]]:
        """Return one line per client of each cell that was evaluated client by client.

        ``local_only_balanced_accuracy`` is the score of a probe trained on the client's own
        examples, or None if it is unknown. A client without scores has a ``reason``.
        """
        lines = []
        for entry in self.entries:
            evaluation = self.evaluations.get(entry.cell_id)
            if evaluation is None:
                continue
            reference = self.references.get(entry.local_only)
            for client in evaluation.get("clients", ()):
                score = None
                if reference:
                    score = reference["clients"][client["client"]]
                line = {
                    "cell_id": entry.cell_id,
                    **client,
                    "local_only_balanced_accuracy": score,
                }
                if not client["test_rows"]:
                    line["reason"] = "it has no test row"
                lines.append(line)
        return lines

    def audit_lines(self) -> list[dict[str, Any]]:
        """Return one audit line for each cell whose claim was audited.

        Cells with the same claim have the same audit.
        """
        lines = {}
        for entry in self.entries:
            training = self.trainings.get(entry.training_id)
            audit = training and self.audit_of(training)
            if audit:
                lines[entry.cell_id] = {"cell_id": entry.cell_id, **audit}
        return list(lines.values())

    def write(self) -> None:
        """Replace ``results.jsonl`` and ``clients.jsonl``, each completely or not at all.

        ``clients.jsonl`` is written only if a cell was evaluated client by client, or if an earlier
        file has to be emptied.
        """
        clients = self.clients()
        _write(self.folder.results, [row.values for row in self.rows])
        if clients or self.folder.clients.exists():
            _write(self.folder.clients, clients)


def id_of_run(training: TrainingRecord) -> str:
    """Return the id of the training that ran for a training line.

    Cells that are equal by construction share one training, which ``equal_to`` names.
    """
    # Lines of earlier versions lack the key. Each of them counts as a training of its own.
    return training.get("equal_to") or training["training_id"]


def claim_of(cell: Mapping[str, Any]) -> str:
    """Return the key of the claim that an audit tests, as one text.

    It holds the cell's code, algorithm, parameters, unit, trust, ε and δ. For a tuned cell the
    description of the search takes the place of the parameters that the search chose.
    """
    params = cell["params"]
    if tuning := cell.get("tuning"):
        untuned = {name: value for name, value in params.items() if name not in tuning["space"]}
        params = [untuned, tuning]
    names = ("source", "algorithm", "params", "unit", "trust", "epsilon", "delta")
    return dump([{**cell, "params": params}[name] for name in names])


def read_results(folder: Path | str) -> RunResults:
    """Return the results of a run folder.

    Raises:
        UserError: The manifest or a line cannot be read, or is of another format.
    """
    store = ResultStore(folder)
    manifest = read_manifest(store.folder.path)
    results = RunResults(
        store.folder,
        trainings=store.last("trainings"),
        evaluations=store.last("evaluations"),
        references=store.last("references"),
        # Every audit and check counts, not only the last one with a key.
        audits=list(store.lines("audits")),
        checks=list(store.lines("checks")),
        memberships=store.last("memberships"),
    )
    if "cells" not in manifest:
        return replace(results, entries=results.every_entry)
    return replace(results, entries=[Entry(**cell) for cell in listed(manifest)])


def listed(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the cells of the manifest's grid, then those of earlier grids in its report."""
    return [*manifest["cells"], *manifest.get("kept", ())]


_RefusedKey = Literal["algorithm", "error"]
_MethodKey = Literal["label", "text", "source"]


class _Origin(BaseModel):
    """Which fedsim wrote a manifest, and in which format; other keys depend on the format."""

    format: Any = None
    versions: dict[str, Any] | None = None


class _Manifest(BaseModel):
    """The keys of a manifest that are read, with the types that they must have."""

    cells: list[Entry] | None = None
    kept: list[Entry] = []
    refused: list[dict[_RefusedKey, str]] | None = None
    methods: list[dict[_MethodKey, str]] = []
    published: list[Published] = []
    hardware: dict[str, Any] = {}
    versions: dict[str, str] = {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run folder; an empty dictionary if there is none.

    Raises:
        UserError: The manifest cannot be read, or the run folder has another format.
    """
    path = RunFolder(folder).manifest
    if not path.exists():
        return {}
    try:
        content = path.read_bytes()
        origin = _Origin.model_validate_json(content)
        if origin.versions is not None and origin.format != FORMAT:
            raise UserError(
                str(folder),
                f"is of fedsim {origin.versions.get('fedsim')}, whose run folders have another "
                "format",
                "read it with the version that wrote it, or run its grid again in a new folder",
            )
        _Manifest.model_validate_json(content, strict=True)
        manifest: dict[str, Any] = load(content)
    except (OSError, ValueError) as error:
        raise unreadable(str(path), error) from error
    return manifest


def published_in(*folders: Path | str) -> list[Published]:
    """Return the published numbers in the grids of some run folders."""
    return [
        Published.model_validate(entry)
        for folder in folders
        for entry in read_manifest(Path(folder)).get("published", ())
    ]


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace a file by lines of JSON, at once or not at all."""
    content = "".join(f"{plain_json(line)}\n" for line in lines)
    with replaced(path) as part:
        part.write_text(content, encoding="utf-8")
