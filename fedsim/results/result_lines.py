"""What each job of a cell leaves: its result line, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.grid.models import shown
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import counted_by
from fedsim.training.trial import Outcome, Trial
from fedsim.words import encodable

MOST_MESSAGE, MOST_TRACEBACK, ROOM = 2_000, 20_000, 100
"""Characters of an error that a row holds, and room to say how many are left out; the cell's log has all of them."""


class RowError(BaseModel):
    """Why a cell failed.

    Attributes:
        type: the exception's class.
        message: its message, from the beginning.
        traceback: its traceback, to the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    message: str
    traceback: str

    @field_validator("type", "message")
    @classmethod
    def _beginning(cls, text: str) -> str:
        left = len(text) - MOST_MESSAGE
        return encodable(text if left <= ROOM else f"{text[:MOST_MESSAGE]} ... ({left} characters more in the cell's log)")

    @field_validator("traceback")
    @classmethod
    def _end(cls, text: str) -> str:
        left = len(text) - MOST_TRACEBACK
        return encodable(text if left <= ROOM else f"({left} characters before in the cell's log) ... {text[-MOST_TRACEBACK:]}")


def training_line(
    trial: Trial, end: Outcome | RowError, versions: Mapping[str, str], class_names: Sequence[str] = (), state: str | None = None
) -> dict[str, Any]:
    """The line of a training.

    Args:
        trial: the cell.
        end: how its training ended.
        versions: of the packages that computed.
        class_names: what the classes are called; may be empty.
        state: SHA-256 of the file of tensors that it left; None where none was kept.
    """
    cell, plan, cls = trial.cell, trial.plan, lookup(trial.cell.algorithm)
    outcome = end if isinstance(end, Outcome) else None
    return {
        "training_id": cell.training_id,
        "error": None if outcome else end.model_dump(),  # type: ignore[union-attr]
        "cell": cell.model_dump(mode="json"),
        "task": {name: value for name, value in asdict(trial.task).items() if name != "public"},
        "plan": None if plan is None else asdict(plan),
        "dataset": shown(cell.dataset, cell.evaluation.unseen),
        "alpha": cell.concentration,
        "yields": "generator" if cls.generates(cls.Params.model_validate(cell.params)) else "classifier",
        "partition": trial.partition.fingerprint,
        "train_rows": trial.train_rows,
        "train_groups": trial.train_groups,
        "ledger": None if outcome is None or plan is None else _ledger(outcome),
        "trials": outcome and outcome.trials,
        "uplink_bytes": outcome and outcome.uplink_bytes,
        "downlink_bytes": outcome and outcome.downlink_bytes,
        "parameters": outcome and outcome.parameters,
        "seconds": outcome and outcome.seconds,
        "versions": dict(versions),
        "class_names": list(class_names),
        "state": state,
    }


def _ledger(outcome: Outcome) -> dict[str, Any]:
    """What was spent; where it is not what was planned, only that."""
    if outcome.unaccounted:
        return {"unaccounted": outcome.unaccounted, "accountant": outcome.accountant}
    return {
        "unaccounted": "",
        "accountant": outcome.accountant,
        "epsilon_spent": outcome.epsilon_spent,
        "mechanisms": None if outcome.mechanisms is None else [asdict(one) for one in outcome.mechanisms],
        "noise_at": outcome.noise_at,
        "counted_by": counted_by(),
    }


def judgement_line(trial: Trial, end: Judgement | RowError, seconds: float) -> dict[str, Any]:
    """The line of a judgement; ``seconds`` is its wall time."""
    cell = trial.cell
    line = {
        "cell_id": cell.cell_id,
        "training_id": cell.training_id,
        "evaluation": cell.evaluation.model_dump(mode="json", exclude_none=True),
        "judged": harness_hash("evaluation"),
        "seconds": seconds,
    }
    if isinstance(end, RowError):
        return line | {"error": end.model_dump()}
    return line | {
        "error": None,
        "tested": end.tested,
        "label_shares": end.label_shares,
        "scores": end.scores,
        "recalls": end.recalls,
        "clients": [_client(client) for client in map(asdict, end.clients)],
    }


def _client(scores: Mapping[str, Any]) -> dict[str, Any]:
    line = {name: scores[name] for name in ("client", "name", "rows", "test_rows")}
    for whose in ("own", "shared"):
        line |= {f"{whose}_{name}": scores[whose] and scores[whose][name] for name in ("accuracy", "balanced_accuracy")}
    return line


def reference_line(key: str, value: Ceiling | LocalOnly) -> dict[str, Any]:
    """The line of a reference."""
    return {"reference": key, "kind": "ceiling" if isinstance(value, Ceiling) else "local-only", **asdict(value)}
