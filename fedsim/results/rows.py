"""The result of a cell, as one line of JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from fedsim.evaluation.measures import MEASURES, LabelShares
from fedsim.json_lines import decode, dump, load
from fedsim.plugins.claims import Check
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Claim, Neighbours, Trust, large_delta
from fedsim.privacy.selection import Distribution, Selection
from fedsim.words import encodable, setting, spelled

Status = Literal["ok", "failed", "overspent", "unaccounted", "refuted"]


UNDRAWN = ("failed", "overspent", "unaccounted", "refuted")
"""The statuses of rows that are in no mean and no picture."""


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


class Tuned(BaseModel):
    """How a row's parameters were chosen.

    Attributes:
        space: values by parameter, of which each training drew one.
        trials: the mean number of trainings.
        distribution: of their number.
        held_out: the probability with which a unit was held out, to score trainings on.
        free: by scores on test rows, which no budget pays for.
        chosen: the parameters of the best training that were drawn.
        trained: how many trainings there were. Not private, so no part of a release.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: dict[str, tuple[Any, ...]]
    trials: float
    distribution: Distribution
    held_out: float
    free: bool
    chosen: dict[str, Any]
    trained: int | None


class Row(BaseModel):
    """The result of one cell. What a failed cell lacks is None; so is every epsilon of a method without DP.

    Attributes:
        cell_id: hash of all that can change the row.
        source: hash of the code that ran (:mod:`fedsim.plugins.code_hash`).
        judged: hash of the code that computed scores and references.
        status: ``failed``: see ``error``; ``overspent``: the epsilon spent exceeds the target; ``unaccounted``: the ledger differs from the
            plan, so epsilon is unknown and ``error`` says why; ``refuted``: a bound of an audit exceeds the target, or a sensitivity was
            exceeded.
        error: why a cell failed.
        algorithm: its name, as the grid gives it.
        label: what tables and curves call the algorithm with these parameters.
        params: all parameters of the algorithm, defaults included.
        yields: what the algorithm makes.
        dataset: what tables call the data set.
        dataset_hash, partition_hash: fingerprints of the data and of the partition.
        public: what tables call the public rows that the algorithm used; None: none.
        public_hash: their fingerprint.
        public_licence: of their source, in words; None where it is not known.
        scheme: of the partition.
        alpha: Dirichlet concentration; None for schemes without one.
        clients: how many.
        train_rows: how many training rows the clients hold together.
        train_groups: how many groups these are, where the unit is a group.
        seed: root of all random numbers of the cell.
        epsilon_target: the budget.
        epsilon_spent: counted from the steps that ran, under add-or-remove-one.
        delta: of the budget.
        unit: what the budget protects: ``example``, ``client``, or a group by its column.
        relation: what neighbouring data sets differ in.
        trust: who may see what: only the sum over clients, or every message.
        scope: ``joint`` where all that is trained on private data is noised, ``shared`` (of FedHypeVAE
            ``hypernetwork``) where only shared parameters are.
        claim: what epsilon rests on.
        check: how a check of this code and these parameters in this unit and trust ended; None: none says anything.
        accountant: which accountant computed epsilon.
        noise: ``seeded`` or ``secret``.
        sigma: the plan's: the noise multiplier of a release of relative noise 1. Every release's own is in ``mechanisms``.
        sample_rate: Poisson rate of the main release.
        steps: noisy steps of all releases.
        clip: the clip norm.
        sensitivity: L2 distance by which one unit can move what is noised.
        mechanisms: what the ledger counted for the data of every client; with ``delta`` and ``relation`` anyone can compute
            ``epsilon_spent`` again.
        tuning: how some of ``params`` were chosen; None: they were given.
        selection: of a tuned row that pays for its search, the mechanisms of its trainings and the noise of their scores, from which anyone
            can compute ``epsilon_spent``; ``mechanisms`` are the best training's and its score's.
        noise_at: whether noise is added once to the sum over clients or by every client.
        counted_by: revision of the accounting code.
        audit_epsilon_lower: the largest epsilon of the claimed mechanism with other noise that an audit refutes with 95 % confidence.
        audit_epsilon_any: the largest epsilon of any mechanism that it refutes.
        audit_method: how the audit looked.
        audit_pairs: pairs of trainings of the audit.
        audit_canary_ratio: what the audit's canary adds to a step, in units of the claimed sensitivity.
        audit_params: the parameters that the audit changed to be short, with their values there; None: no audit.
        evaluation: the keys of the grid's ``evaluation`` that scores are by.
        unseen: a site that took no part and on whose test rows all scores are.
        tested: which test rows the clients' own scores are from.
        label_shares: how frequent labels are in ``accuracy``. Personal scores use the client's shares, all others equal ones. None for a
            classifier, which has its own.
        scores: by the names of :data:`fedsim.evaluation.measures.MEASURES`; on disk each score is a field of the row.
        recall_per_class: in the order of the classes; None for a class without test rows.
        ceiling_balanced_accuracy, ceiling_accuracy: of the best linear probe of the pooled real training rows.
        local_only_balanced_accuracy: mean over clients of probes of their own rows.
        chance: of a guess among all classes.
        uplink_bytes, downlink_bytes: sent and received by all clients in all rounds, from the shapes of messages; the row count that weighs
            an update without privacy is left out.
        parameters: how many numbers one client trains.
        seconds: wall time, training and judging.
        train_seconds, judge_seconds: of each.
        versions: of Python and the packages that computed the cell.
        generator: SHA-256 of the tensors that the training left; None where none were kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell_id: str
    source: str | None = None
    judged: str | None = None
    status: Status
    error: RowError | None = None
    algorithm: str
    label: str
    params: dict[str, Any]
    yields: Literal["generator", "classifier"] | None = None
    dataset: str
    dataset_hash: str | None = None
    public: str | None = None
    public_hash: str | None = None
    public_licence: str | None = None
    scheme: str | None = None
    alpha: float | None = None
    clients: int | None = None
    partition_hash: str | None = None
    train_rows: int | None = None
    train_groups: int | None = None
    seed: int | None = None
    epsilon_target: float | None = None
    epsilon_spent: float | None = None
    delta: float | None = None
    unit: str | None = None
    relation: Neighbours | None = None
    trust: Trust | None = None
    scope: str | None = None
    claim: Claim | None = None
    check: Check | None = None
    accountant: str | None = None
    noise: Literal["seeded", "secret"] | None = None
    sigma: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    clip: float | None = None
    sensitivity: float | None = None
    mechanisms: tuple[Mechanism, ...] | None = None
    tuning: Tuned | None = None
    selection: Selection | None = None
    noise_at: Literal["sum", "clients"] | None = None
    counted_by: str | None = None
    audit_epsilon_lower: float | None = None
    audit_epsilon_any: float | None = None
    audit_method: str | None = None
    audit_pairs: int | None = None
    audit_canary_ratio: float | None = None
    audit_params: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    unseen: str | None = None
    tested: str | None = None
    label_shares: LabelShares | None = None
    scores: dict[str, float] = {}
    recall_per_class: tuple[float | None, ...] | None = None
    ceiling_balanced_accuracy: float | None = None
    ceiling_accuracy: float | None = None
    local_only_balanced_accuracy: float | None = None
    chance: float | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    train_seconds: float | None = None
    judge_seconds: float | None = None
    versions: dict[str, str] = {}
    generator: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        scores = fields.get("scores", {}) | {name: fields[name] for name in MEASURES if fields.get(name) is not None}
        accuracy, ceiling = scores.get("balanced_accuracy"), fields.get("ceiling_balanced_accuracy")
        if isinstance(accuracy, float) and isinstance(ceiling, float) and ceiling > 0:
            scores["share_of_ceiling"] = accuracy / ceiling
        return {**{name: value for name, value in fields.items() if name not in MEASURES}, "scores": scores}

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        fields |= {name: self.scores.get(name) for name in MEASURES} if "scores" in fields else {}
        return {name: fields[name] for name in self.columns() if name in fields}

    @classmethod
    def columns(cls) -> list[str]:
        """The names of a row's fields on disk, in their order."""
        return [column for name in cls.model_fields for column in (MEASURES if name == "scores" else [name])]

    @property
    def balanced_accuracy(self) -> float | None:
        """The score that curves are drawn of."""
        return self.scores.get("balanced_accuracy")

    @property
    def setting(self) -> str:
        """Method, data set, alpha, clients, epsilon and seed in a few words."""
        return setting(self.label, self.dataset, alpha=self.alpha, clients=self.clients, epsilon=self.epsilon_target, seed=self.seed)

    @property
    def given_params(self) -> dict[str, Any]:
        """The parameters without those that were chosen, which differ between the seeds of one setting."""
        chosen = self.tuning.chosen if self.tuning else {}
        return {name: value for name, value in self.params.items() if name not in chosen}

    @property
    def units(self) -> int | None:
        """How many units the budget protects in all."""
        return self.clients if self.unit == "client" else self.train_groups or self.train_rows

    @property
    def audited_epsilon(self) -> float:
        """The largest epsilon that an audit refutes; 0 without one."""
        return max(self.audit_epsilon_lower or 0.0, self.audit_epsilon_any or 0.0)

    @property
    def audited_form(self) -> str:
        """What was audited where that is not the cell's own parameters, in words; else empty."""
        changed = ", ".join(f"{name} {spelled(value)}" for name, value in (self.audit_params or {}).items())
        return changed and f"of a short form: {changed}"

    @property
    def drawn_claim(self) -> Claim | None:
        """The claim as tables and curves have it: one in which a check found a fault is no theorem."""
        return "heuristic" if self.check == "failed" and self.claim in ("proved", "stated") else self.claim

    def value(self, name: str) -> float | None:
        """The number in a column; None where the row has none."""
        number: float | None = self.scores.get(name) if name in MEASURES else getattr(self, name)
        return number

    @model_validator(mode="after")
    def _status_fits(self) -> Row:
        if (self.status in ("failed", "unaccounted")) != (self.error is not None):
            raise ValueError("a failed or unaccounted row has an error, and no other row has one")
        if not self.scores.keys() <= MEASURES.keys():
            raise ValueError(f"there is no measure {min(self.scores.keys() - MEASURES.keys())}")
        fields = self.__dict__
        # NaN alone is not equal to itself
        if strange := [name for name in _NUMBERS if fields[name] != fields[name]] + [name for name, x in self.scores.items() if x != x]:
            raise ValueError(f"{min(strange)} is not a number")
        target, spent = self.epsilon_target, self.epsilon_spent
        if self.status == "ok" and target is not None and self.audited_epsilon > target:
            raise ValueError(
                f"epsilon {target} is claimed and one below {self.audited_epsilon} is refuted: the status is 'refuted', not 'ok'"
            )
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
        fields = load(line)
        if isinstance(fields, dict) and "params" in fields:
            fields["params"] = decode(fields["params"])
        return cls.model_validate(fields)


def large_deltas(rows: Sequence[Row]) -> list[str]:
    """Warnings of budgets whose delta is too large for the data, each once (:func:`fedsim.privacy.plan.large_delta`)."""
    private = [row for row in rows if row.epsilon_target is not None and math.isfinite(row.epsilon_target)]
    settings = dict.fromkeys((row.unit, row.delta, row.units, row.dataset) for row in private)
    return [
        text
        for unit, delta, units, dataset in settings
        if unit is not None and delta is not None and units is not None and (text := large_delta(unit, delta, units, dataset))
    ]


_NUMBERS = tuple(name for name, field in Row.model_fields.items() if field.annotation == float | None)
