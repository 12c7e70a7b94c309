"""What each job of a cell leaves: its result line, as plain values, and the tensors of its
training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.errors import UserError
from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.files import replaced, unread
from fedsim.grid.models import shown
from fedsim.json_lines import plain_json
from fedsim.methods.messages import Tensors
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import counted_by
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.columns import Line
from fedsim.results.store import RESTORE
from fedsim.training.trial import Outcome, Trial
from fedsim.words import encodable

MOST_MESSAGE = 2_000
MOST_TRACEBACK = 20_000
"""Characters of an error that a row holds; the cell's log has all of them."""
_Beginning = Annotated[str, AfterValidator(lambda text: encodable(text[:MOST_MESSAGE]))]
_End = Annotated[str, AfterValidator(lambda text: encodable(text[-MOST_TRACEBACK:]))]


class RowError(BaseModel, frozen=True, extra="forbid"):
    """Why a cell failed: the exception's class, its message from the beginning, and its traceback
    to the end.
    """

    type: _Beginning
    message: _Beginning
    traceback: _End


def training_line(
    trial: Trial,
    end: Outcome | RowError,
    versions: Mapping[str, str],
    class_names: Sequence[str] = (),
    state: str | None = None,
    equal_to: str | None = None,
) -> dict[str, Any]:
    """The line of a training.

    Args:
        trial: the cell.
        end: how its training ended.
        versions: of the packages that computed.
        class_names: what the classes are called; may be empty.
        state: SHA-256 of the file of tensors that it left; None where none was kept.
        equal_to: the id of the one training that ran, where the cell is equal to that training's
            cell by construction; None where the cell's own training ran.
    """
    cell = trial.cell
    plan = trial.plan
    cls = lookup(trial.cell.algorithm)
    if isinstance(end, Outcome):
        outcome = end
    else:
        outcome = None
    measured = ("trials", "uplink_bytes", "downlink_bytes", "parameters", "seconds")
    return {
        "training_id": cell.training_id,
        "error": end.model_dump() if isinstance(end, RowError) else None,
        "cell": cell.model_dump(mode="json"),
        "task": {name: value for name, value in asdict(trial.task).items() if name != "public"},
        "plan": None if plan is None else asdict(plan),
        "dataset": shown(cell.dataset, cell.evaluation.unseen),
        "alpha": cell.concentration,
        "yields": "generator"
        if cls.generates(cls.Params.model_validate(cell.params))
        else "classifier",
        "partition": trial.partition.fingerprint,
        "train_rows": trial.train_rows,
        "train_groups": trial.train_groups,
        "ledger": None if outcome is None or plan is None else _ledger(outcome),
        **{name: getattr(outcome, name, None) for name in measured},
        "versions": dict(versions),
        "class_names": list(class_names),
        "state": state,
        "equal_to": equal_to,
    }


def _ledger(outcome: Outcome) -> dict[str, Any]:
    """What was spent; where it is not what was planned, only that."""
    ledger = {"unaccounted": outcome.unaccounted, "accountant": outcome.accountant}
    if outcome.unaccounted:
        return ledger
    if outcome.mechanisms is None:
        ran = None
    else:
        ran = [asdict(one) for one in outcome.mechanisms]
    return {
        **ledger,
        "epsilon_spent": outcome.epsilon_spent,
        "mechanisms": ran,
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
    scored = {name: getattr(end, name) for name in ("tested", "label_shares", "scores", "recalls")}
    return {
        **line,
        "error": None,
        **scored,
        "clients": [_client(asdict(client)) for client in end.clients],
    }


def _client(scores: Mapping[str, Any]) -> dict[str, Any]:
    line = {name: scores[name] for name in ("client", "name", "rows", "test_rows")}
    for whose in ("own", "shared"):
        line |= {
            f"{whose}_{name}": scores[whose] and scores[whose][name]
            for name in ("accuracy", "balanced_accuracy")
        }
    return line


def reference_line(key: str, value: Ceiling | LocalOnly) -> dict[str, Any]:
    """The line of a reference."""
    return {
        "reference": key,
        "kind": "ceiling" if isinstance(value, Ceiling) else "local-only",
        **asdict(value),
    }


def keep_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write the tensors, at once or not at all; returns SHA-256 of the file."""
    content = save({name: value.contiguous() for name, value in state.items()})
    with replaced(path) as part:
        part.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_state(path: Path, sha256: str) -> Tensors:
    """The tensors, if they are those that were written."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not the one that was noted when it was written")
        state: Tensors = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(path), f"cannot be read ({unread(error)})", RESTORE) from error
    return state


def as_trained(trial: Trial, line: Line) -> Trial:
    """The cell with the parameters and the plan of its training, which a tuned cell chose."""
    plan = line["plan"] and TypeAdapter(PrivacyPlan).validate_json(plain_json(line["plan"]))
    if trial.candidates and line["error"] is None:
        return trial.of(line["cell"]["params"], plan)
    return trial
