"""The result of a cell, as one line of JSON."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from fedsim.privacy.plan import Claim
from fedsim.results.lines import decode, dump

UNDRAWN = ("failed", "overspent", "unaccounted")
"""The statuses of rows that are in no mean and no picture."""


class RowError(BaseModel):
    """Why a cell failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    message: str
    traceback: str


class Row(BaseModel):
    """The result of one cell. What a failed cell lacks is None; so is every epsilon of a method without DP.

    ``client_balanced_accuracy`` is that of the clients' own generators, where the grid asks for it
    (:func:`fedsim.evaluation.scores.score_clients`). ``personal_*`` are the :class:`fedsim.evaluation.scores.PersonalScores`, where the
    grid asks for them. ``status`` is ``unaccounted`` where the ledger is not what the plan planned: nothing is known of the epsilon,
    and ``error`` says why. ``epsilon_spent`` is under add-or-remove-one, ``epsilon_spent_replace_one`` under replace-one at the same
    delta (:func:`fedsim.privacy.accountant.replace_one_epsilon`). ``uplink_bytes`` counts what all clients sent in all rounds,
    ``seconds`` is the cell's wall time, ``sigma`` the noise multiplier, ``steps`` the number of noisy steps, ``sample_rate`` their
    Poisson rate. ``source`` is the hash of the code that ran (:mod:`fedsim.methods.source_hash`); a row without one is older than this
    field, and so than any row with one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell_id: str
    source: str | None = None
    status: Literal["ok", "failed", "overspent", "unaccounted"]
    error: RowError | None = None
    algorithm: str
    label: str
    params: dict[str, Any]
    dataset: str
    dataset_hash: str | None = None
    scheme: str | None = None
    alpha: float | None = None
    clients: int | None = None
    partition_hash: str | None = None
    train_rows: int | None = None
    seed: int | None = None
    epsilon_target: float | None = None
    epsilon_spent: float | None = None
    epsilon_spent_replace_one: float | None = None
    delta: float | None = None
    unit: Literal["example", "client"] | None = None
    trust: Literal["aggregate", "silo"] | None = None
    scope: str | None = None
    claim: Claim | None = None
    accountant: str | None = None
    noise: Literal["seeded", "secret"] | None = None
    sigma: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    clip: float | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    client_balanced_accuracy: float | None = None
    personal_accuracy: float | None = None
    personal_balanced_accuracy: float | None = None
    personal_weight: float | None = None
    ceiling_balanced_accuracy: float | None = None
    local_only_balanced_accuracy: float | None = None
    chance: float | None = None
    uplink_bytes: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _status_fits(self) -> Row:
        if (self.status in ("failed", "unaccounted")) != (self.error is not None):
            raise ValueError("a failed or unaccounted row has an error, and no other row has one")
        if self.status != "failed" and None in (self.accuracy, self.balanced_accuracy, self.macro_f1):
            raise ValueError(f"a row with status {self.status} has accuracy, balanced_accuracy and macro_f1")
        target, spent = self.epsilon_target, self.epsilon_spent
        if self.status == "ok" and target is not None and spent is not None and spent > target * (1 + 1e-6):
            raise ValueError(f"epsilon {spent} was spent and {target} allowed: the status is 'overspent', not 'ok'")
        return self

    def to_json(self) -> str:
        """The row as one line of JSON, without the newline; infinity is the string "inf"."""
        return dump(self.model_dump())

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """The row that ``to_json`` wrote.

        Raises:
            ValueError: the line is not JSON, or not a row (pydantic's ValidationError is a ValueError).
        """
        fields = json.loads(line)
        if isinstance(fields, dict) and "params" in fields:
            fields["params"] = decode(fields["params"])
        return cls.model_validate(fields)
