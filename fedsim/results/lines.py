"""Makes the records of trainings, evaluations and references, and saves the tensors of a training.

The keys of the records are in :mod:`fedsim.results.records`. The records hold plain values.
:class:`fedsim.results.store.ResultStore` appends them as lines to the files of a run folder.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from fedsim.errors import UserError
from fedsim.evaluation.evaluate import ClientScores, EvaluationResult
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.files import replaced, unread
from fedsim.grid.models import shown
from fedsim.json_lines import plain_json
from fedsim.methods.messages import Tensors
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import counted_by
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.records import (
    ClientRecord,
    EvaluationRecord,
    LedgerRecord,
    ReferenceRecord,
    TrainingRecord,
)
from fedsim.results.store import RESTORE
from fedsim.training.trial import Outcome, Trial
from fedsim.words import encodable

MOST_MESSAGE = 2_000
"""The most characters of an error's message in a line; the cell's log has all of them."""
MOST_TRACEBACK = 20_000
"""The most characters of an error's traceback in a line; the cell's log has all of them."""
# Texts of these types are cut, and get a ? for every character that UTF-8 cannot encode.
_Beginning = Annotated[str, AfterValidator(lambda text: encodable(text[:MOST_MESSAGE]))]
_End = Annotated[str, AfterValidator(lambda text: encodable(text[-MOST_TRACEBACK:]))]


class RowError(BaseModel, frozen=True, extra="forbid"):
    """Why a cell failed.

    Attributes:
        type: The name of the exception's class.
        message: Its message; the end of a long one is cut off.
        traceback: Its traceback; the beginning of a long one is cut off.
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
) -> TrainingRecord:
    """Return the record of a training.

    Args:
        trial: The cell.
        end: How its training ended.
        versions: The versions of Python and of the packages that computed.
        class_names: The names of the classes, which may be empty.
        state: The SHA-256 of the file of tensors that the training left; None if none was kept.
        equal_to: The id of the training that ran in its place, if its result is equal by
            construction; None if the cell's own training ran.
    """
    cell = trial.cell
    task = asdict(trial.task)
    del task["public"]
    record: TrainingRecord = {
        "training_id": cell.training_id,
        "error": None,
        "cell": cell.model_dump(mode="json"),
        "task": task,
        "plan": None,
        "dataset": shown(cell.dataset, cell.evaluation.unseen),
        "alpha": cell.concentration,
        "yields": _product_of(trial),
        "partition": trial.partition.fingerprint,
        "train_rows": trial.train_rows,
        "train_groups": trial.train_groups,
        "ledger": None,
        "trials": None,
        "uplink_bytes": None,
        "downlink_bytes": None,
        "parameters": None,
        "seconds": None,
        "versions": dict(versions),
        "class_names": list(class_names),
        "state": state,
        "equal_to": equal_to,
    }
    if trial.plan is not None:
        record["plan"] = asdict(trial.plan)
    if isinstance(end, RowError):
        record["error"] = end.model_dump()
        return record
    if trial.plan is not None:
        record["ledger"] = _ledger(end)
    record |= {
        "trials": end.trials,
        "uplink_bytes": end.uplink_bytes,
        "downlink_bytes": end.downlink_bytes,
        "parameters": end.parameters,
        "seconds": end.seconds,
    }
    return record


def _product_of(trial: Trial) -> str:
    """Return what a cell's algorithm produces: ``generator`` or ``classifier``."""
    cls = lookup(trial.cell.algorithm)
    if cls.generates(cls.Params.model_validate(trial.cell.params)):
        return "generator"
    return "classifier"


def _ledger(outcome: Outcome) -> LedgerRecord:
    """Return the totals of the ledger.

    If they differ from the plan, no ε is known, and only ``unaccounted`` and the accountant are
    returned.
    """
    ledger: LedgerRecord = {
        "unaccounted": outcome.unaccounted,
        "accountant": outcome.accountant,
    }
    if outcome.unaccounted:
        return ledger
    # The mechanisms are None only without a plan, and a ledger is made only with one.
    return {
        **ledger,
        "epsilon_spent": outcome.epsilon_spent,
        "mechanisms": [asdict(mechanism) for mechanism in outcome.mechanisms or ()],
        "noise_at": outcome.noise_at,
        "counted_by": counted_by(),
    }


def evaluation_line(
    trial: Trial, end: EvaluationResult | RowError, seconds: float
) -> EvaluationRecord:
    """Return the record of an evaluation.

    Args:
        trial: The cell.
        end: How its evaluation ended.
        seconds: The wall time of the evaluation in seconds.
    """
    cell = trial.cell
    record: EvaluationRecord = {
        "cell_id": cell.cell_id,
        "training_id": cell.training_id,
        "evaluation": cell.evaluation.model_dump(mode="json", exclude_none=True),
        "evaluation_source": harness_hash("evaluation"),
        "seconds": seconds,
        "error": None,
    }
    if isinstance(end, RowError):
        record["error"] = end.model_dump()
        return record
    record |= {
        "tested": end.tested,
        "label_shares": end.label_shares,
        "scores": end.scores,
        "recalls": list(end.recalls),
        "clients": list(map(_client_record, end.clients)),
    }
    return record


def _client_record(client: ClientScores) -> ClientRecord:
    """Return the record of one client: the scores of its own model and of the shared one."""
    own_scores: Mapping[str, float] = client.own or {}
    shared_scores: Mapping[str, float] = client.shared or {}
    return {
        "client": client.client,
        "name": client.name,
        "rows": client.rows,
        "test_rows": client.test_rows,
        "own_accuracy": own_scores.get("accuracy"),
        "own_balanced_accuracy": own_scores.get("balanced_accuracy"),
        "shared_accuracy": shared_scores.get("accuracy"),
        "shared_balanced_accuracy": shared_scores.get("balanced_accuracy"),
    }


def reference_line(key: str, value: Ceiling | LocalOnly) -> ReferenceRecord:
    """Return the record of a reference; the entries of cells name it by ``key``."""
    if isinstance(value, Ceiling):
        return {
            "reference": key,
            "kind": "ceiling",
            "balanced_accuracy": value.balanced_accuracy,
            "accuracy": value.accuracy,
            "reference_rows": value.reference_rows,
            "seconds": value.seconds,
        }
    return {
        "reference": key,
        "kind": "local-only",
        "mean": value.mean,
        "clients": list(value.clients),
        "reference_rows": value.reference_rows,
        "seconds": value.seconds,
    }


def keep_state(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write tensors into a file, completely or not at all, and return the file's SHA-256.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    with replaced(path) as new_file:
        try:
            save_file(tensors, new_file)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        with new_file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path, sha256: str | None) -> Tensors:
    """Return the tensors of a file, if they are those that were written.

    Args:
        path: The file.
        sha256: The SHA-256 that :func:`keep_state` returned. No file matches None, which stands in
            the record of a training whose tensors were not kept.

    Raises:
        UserError: The file cannot be read, or has another SHA-256.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                str(path),
                "has changed since fedsim wrote it (its SHA-256 is another one)",
                RESTORE,
            )
        state: Tensors = load(content)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            str(path),
            f"cannot be read ({unread(error)})",
            RESTORE,
        ) from error
    return state


def as_trained(trial: Trial, training: TrainingRecord) -> Trial:
    """Return the cell with the parameters and the plan that its search chose.

    A cell that is not tuned, or whose training failed, is returned as it is.

    Args:
        trial: The cell.
        training: The record of its training.
    """
    if not trial.candidates or training["error"] is not None:
        return trial
    plan = None
    if training["plan"]:
        plan = TypeAdapter(PrivacyPlan).validate_json(plain_json(training["plan"]))
    return trial.of(training["cell"]["params"], plan)
