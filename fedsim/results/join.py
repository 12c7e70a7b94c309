"""A run's rows: the left join of its result lines by their keys, for the cells of its grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from fedsim.json_lines import dump
from fedsim.plugins.claims import Check, check_of
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore

Line = Mapping[str, Any]


@dataclass(frozen=True)
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
        return cls(store.trainings(), store.judgements(), store.references(), store.audits(), list(store.lines("checks")))

    def row(self, entry: Entry) -> Row | None:
        """The row of a cell; None while its training or judgement is not finished."""
        training, judgement = self.trainings.get(entry.training_id), self.judgements.get(entry.cell_id)
        if training is None or (training["error"] is None and judgement is None):
            return None
        return self.trained_row(entry)

    def trained_row(self, entry: Entry) -> Row:
        """The row of a cell whose training has ended, judged or not."""
        training = self.trainings[entry.training_id]
        ended = self.judgements.get(entry.cell_id) if training["error"] is None else None
        error = training["error"] or (ended["error"] if ended is not None else None)
        fields = _trained(training)
        fields.update(
            cell_id=entry.cell_id,
            label=entry.label,
            error=error,
            claim=(training["plan"] or {}).get("claim", "none"),
            check=self.check(training),
        )
        ceiling, local_only = self.references.get(entry.ceiling), self.references.get(entry.local_only)
        if ended is not None and error is None:
            fields.update(_judged(ended, training, local_only))
        if ceiling:
            fields.update(ceiling_balanced_accuracy=ceiling["balanced_accuracy"], ceiling_accuracy=ceiling["accuracy"])
        if local_only:
            fields["local_only_balanced_accuracy"] = local_only["mean"]
        audit = self._audit(entry, training)
        if audit is not None:
            fields.update({f"audit_{name}": audit[name] for name in _OF_AUDIT})
        fields.update(_status(fields, training, audit))
        return Row.model_validate(fields)

    def rows(self, entries: Sequence[Entry]) -> list[Row]:
        """The rows of those cells that are finished, in order."""
        return [row for row in map(self.row, entries) if row is not None]

    def clients(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """A line a client of the cells that were judged by clients, with what it reaches by itself where that is known."""
        return [line for entry in entries for line in self._clients_of(entry)]

    def _clients_of(self, entry: Entry) -> Iterator[dict[str, Any]]:
        judgement, floor = self.judgements.get(entry.cell_id), self.references.get(entry.local_only)
        for client in (judgement or {}).get("clients", ()):
            alone = floor["clients"][client["client"]] if floor else None
            reason = {} if client["test_rows"] else {"reason": "it has no test row"}
            yield {"cell_id": entry.cell_id, **client, "local_only_balanced_accuracy": alone, **reason}

    def standing_of(self, entry: Entry) -> str:
        """Status of a cell, judged or not; "" while its training is not finished."""
        training = self.trainings.get(entry.training_id)
        return "" if training is None else "failed" if training["error"] is not None else self.standing(entry)

    def standing(self, entry: Entry) -> str:
        """Status of a cell whose training has ended well, judged or not."""
        training = self.trainings[entry.training_id]
        fields = _trained(training) | {"error": None}
        return str(_status(fields, training, self._audit(entry, training))["status"])

    def audit_of(self, entry: Entry) -> Line | None:
        """The audit of a cell's claim; None without one, or while its training is not finished."""
        training = self.trainings.get(entry.training_id)
        return None if training is None else self._audit(entry, training)

    def _audit(self, entry: Entry, training: Line) -> Line | None:
        return self.audits.get(entry.audit or "") or (self._audits_of.get(claim_of(training["cell"])) if self.audits else None)

    @cached_property
    def _audits_of(self) -> dict[str, Line]:
        """The last audit of every claim."""
        return {line["claim"]: line for line in self.audits.values()}

    def check(self, training: Line) -> Check | None:
        """What checks in the run folder say of a training's code and parameters, of a search of all that it tries."""
        cell, plan = training["cell"], training["plan"]
        if plan is None:
            return None
        checks = [check for check in self.checks if check["source"] == cell["source"]]
        points = product(*cell["tuning"]["space"].values()) if cell.get("tuning") else ((),)
        settings = ({**cell["params"], **dict(zip((cell.get("tuning") or {}).get("space", ()), point, strict=True))} for point in points)
        said = {check_of(checks, cell["unit"], cell["trust"], params) for params in settings}
        # a search is as well founded as the weakest of its trainings
        return "failed" if "failed" in said else None if None in said else "passed"


_OF_AUDIT = ("epsilon_lower", "epsilon_any", "method", "pairs", "canary_ratio", "params")
"""The fields of a row, behind ``audit_``, that an audit of its claim decides."""


def claim_of(cell: Mapping[str, Any]) -> str:
    """What an audit is of, as one text: a cell's code, parameters, unit, trust, ε and δ."""
    facts = [cell[name] for name in ("source", "algorithm", "params", "unit", "trust", "epsilon", "delta")]
    if (tuning := cell.get("tuning")) is not None:  # what a search chose is no part of its claim
        facts[2] = [{name: value for name, value in cell["params"].items() if name not in tuning["space"]}, tuning]
    return dump(facts)


def _trained(line: Line) -> dict[str, Any]:
    """The fields of a row that its training decides."""
    cell, plan, ledger = line["cell"], line["plan"], line["ledger"] or {}
    evaluation = {name: value for name, value in cell["evaluation"].items() if name != "unseen" and value is not None}
    unseen, unit = cell["evaluation"].get("unseen"), cell["unit_column"] or cell["unit"]
    fields = {
        "source": cell["source"],
        "algorithm": cell["algorithm"],
        "params": cell["params"],
        "yields": line["yields"],
        "dataset": line["dataset"],
        "dataset_hash": cell["dataset_hash"],
        **{name: cell.get(name) for name in ("public", "public_hash", "public_licence")},
        "scheme": cell["partition"]["scheme"],
        "alpha": line["alpha"],
        "clients": cell["clients"],
        "partition_hash": line["partition"],
        "train_rows": line["train_rows"],
        "seed": cell["seed"],
        "evaluation": evaluation,
        "unseen": unseen,
        "chance": 1 / line["task"]["classes"],
        **{name: line[name] for name in ("uplink_bytes", "downlink_bytes", "parameters")},
        "train_seconds": line["seconds"],
        "seconds": line["seconds"],
        "versions": line["versions"],
        "generator": line["state"],
        "tuning": tuning_of(cell, line.get("trials")),
    }
    if plan is None:
        return fields
    return fields | {
        **planned(plan),
        "selection": plan.get("selection"),
        "train_groups": line["train_groups"],
        "epsilon_spent": ledger.get("epsilon_spent"),
        "unit": unit,
        "relation": "add-or-remove-one",
        "accountant": ledger.get("accountant"),
        "noise": cell["noise"],
        "mechanisms": ledger.get("mechanisms"),
        "noise_at": ledger.get("noise_at"),
        "counted_by": ledger.get("counted_by"),
    }


def tuning_of(cell: Mapping[str, Any], trained: int | None = None) -> dict[str, Any] | None:
    """How the parameters of a cell were chosen, and which; ``trained`` is the number of its trainings, where that is known."""
    tuning = cell.get("tuning")
    return tuning and {**tuning, "chosen": {name: cell["params"][name] for name in tuning["space"]}, "trained": trained}


def planned(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row that its plan decides."""
    main = [release for release in plan["releases"] if release["main"]][-1]
    own = {name: plan[name] for name in ("epsilon_target", "delta", "trust", "scope", "sigma", "clip", "sensitivity")}
    return own | {"sample_rate": main["sample_rate"], "steps": sum(release["steps"] for release in plan["releases"])}


def _judged(line: Line, training: Line, local_only: Line | None) -> dict[str, Any]:
    """The fields of a row that judging decides."""
    known = [score for score in (local_only["clients"] if line["clients"] and local_only else ()) if score is not None]
    floor = {"client_local_only_balanced_accuracy": sum(known) / len(known)} if known else {}
    return {
        "judged": line["judged"],
        "judge_seconds": line["seconds"],
        "seconds": (training["seconds"] or 0.0) + line["seconds"],
        "tested": line["tested"],
        "label_shares": line["label_shares"],
        "scores": line["scores"] | floor,
        "recall_per_class": line["recalls"],
        "evaluation": {name: value for name, value in line["evaluation"].items() if name != "unseen"},
    }


def _status(fields: Mapping[str, Any], training: Line, audit: Line | None) -> dict[str, Any]:
    if fields["error"] is not None:
        return {"status": "failed"}
    if unaccounted := (training["ledger"] or {}).get("unaccounted"):
        return {"status": "unaccounted", "error": {"type": "Unaccounted", "message": unaccounted, "traceback": ""}}
    target, spent = fields.get("epsilon_target"), fields.get("epsilon_spent")
    if target is not None and spent is not None and math.isfinite(target) and spent > target * (1 + 1e-6):
        return {"status": "overspent"}
    return {"status": "refuted" if audit is not None and audit["refuted"] else "ok"}
