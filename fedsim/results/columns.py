"""Declares the columns of a result, and makes the result of a cell.

Data frames, tables, pictures, comparisons, boards and the reference page all follow from
:data:`COLUMNS`. :func:`row_of` joins the lines that the jobs of one cell wrote into a :class:`Row`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import plain_json
from fedsim.plugins.registry import EXTERNAL
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import THEOREMS, large_delta
from fedsim.privacy.selection import Selection
from fedsim.results.records import (
    AuditRecord,
    EvaluationRecord,
    Fields,
    LedgerRecord,
    MembershipRecord,
    ReferenceRecord,
    ScoresRecord,
    TrainingRecord,
)
from fedsim.words import number, setting, spelled

if TYPE_CHECKING:
    import pandas as pd

UNDRAWN = ("failed", "overspent", "unaccounted", "refuted")
"""The statuses of results that no mean and no picture includes."""
UNVERIFIED = "unverified"
"""The claim that tables and curves show for external samples, whatever their author states."""
OVERSPENT_TOLERANCE = 1e-6
"""The relative excess of ε over its target that is still rounding, not overspending."""


@dataclass(frozen=True)
class Row:
    """The result of one cell; every column of :data:`COLUMNS` is an attribute.

    A column without a value is None.

    Attributes:
        values: The value of each column by the column's name.
        plan: The privacy plan, with the fields of :class:`fedsim.privacy.plan.PrivacyPlan`; empty
            for a method without privacy.
        refuted: Whether an audit refutes the claim. The status says so only if nothing else is
            wrong with the result.
    """

    values: Mapping[str, Any]
    plan: Fields = field(default_factory=dict)
    refuted: bool = False

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(f"a row has no column '{name}'")
        return self.values.get(name)

    @property
    def setting(self) -> str:
        """Return method, data set, alpha, clients, ε and seed in a few words."""
        return setting(
            self.label,
            self.dataset,
            alpha=self.alpha,
            clients=self.clients,
            epsilon=self.epsilon_target,
            seed=self.seed,
        )

    @property
    def scores(self) -> dict[str, float]:
        """Return the measures that have a value, by name."""
        return {name: self.values[name] for name in MEASURES if self.values.get(name) is not None}

    @property
    def given_params(self) -> dict[str, Any]:
        """Return the parameters that the grid gave, without those that a search chose.

        What a search chooses may differ between the seeds of one setting.
        """
        chosen = (self.tuning or {}).get("chosen", ())
        return {name: value for name, value in self.params.items() if name not in chosen}

    @property
    def ran(self) -> tuple[Mechanism, ...]:
        """Return the mechanisms that the ledger counted."""
        return tuple(Mechanism(**mechanism) for mechanism in self.mechanisms or ())

    @cached_property
    def search(self) -> Selection | None:
        """Return the parameter search that the budget pays for, or None if there is none."""
        if not self.selection:
            return None
        text = plain_json(self.selection)
        selection: Selection = TypeAdapter(Selection).validate_json(text)
        return selection

    @property
    def is_external(self) -> bool:
        """Return whether the result is of external samples, which fedsim did not train."""
        return bool(self.algorithm == EXTERNAL)

    @property
    def is_private(self) -> bool:
        """Return whether the result has a finite ε."""
        return self.epsilon_target is not None and math.isfinite(self.epsilon_target)

    @property
    def has_validation(self) -> bool:
        """Return whether the weight of personal scores was chosen on real validation examples.

        The result in a package has neither scores nor ``evaluation``; then this is False.
        """
        evaluation = self.evaluation or {}
        return bool(evaluation.get("personal") == "held-out")

    @property
    def drawn_claim(self) -> str | None:
        """Return the claim that tables and curves show.

        A theorem whose check failed is shown as ``heuristic``. A claim about external samples is
        shown as :data:`UNVERIFIED`, since fedsim cannot check it.
        """
        if self.is_external and self.claim != "none":
            return UNVERIFIED
        if self.check == "failed" and self.claim in THEOREMS:
            return "heuristic"
        claim: str | None = self.claim
        return claim

    @property
    def outcome(self) -> str:
        """Return how the cell ended, in a few words: its main score, or why it has none."""
        if self.error is not None:
            first_line = self.error["message"].strip().partition("\n")[0]
            if self.status == "unaccounted":
                return f"unaccounted: {first_line}"
            return f"failed, {self.error['type']}: {first_line}"
        if self.status == "refuted":
            return self._refutation()
        words = "not evaluated"
        if self.balanced_accuracy is not None:
            words = f"balanced accuracy {self.balanced_accuracy:.3f}"
        if self.epsilon_spent is not None:
            words += f", ε spent {number(self.epsilon_spent, 3)}"
        if self.status == "overspent":
            return f"overspent ({words} of {number(self.epsilon_target)})"
        return words

    def _refutation(self) -> str:
        """Return the evidence of an audit that refuted the claim, in a few words."""
        evidence = f"an audit finds ε ≥ {number(self.audit_epsilon_lower, 3)}"
        # An audit whose ε is within the target refutes the claim by the sensitivity alone.
        if self.audit_epsilon_lower <= (self.epsilon_target or 0.0):
            ratio = number(self.audit_canary_ratio, 3)
            evidence = f"a canary adds {ratio} of the claimed sensitivity"
        return f"refuted (ε = {number(self.epsilon_target)} claimed, {evidence})"

    @property
    def audited_form(self) -> str:
        """Return the parameters that the audit changed, in words; "" if it changed none."""
        if not self.audit_params:
            return ""
        changes = [f"{name} {spelled(value)}" for name, value in self.audit_params.items()]
        return f"of a short form: {', '.join(changes)}"


def row_of(
    cell_id: str,
    label: str,
    training: TrainingRecord,
    evaluation: EvaluationRecord | None = None,
    ceiling: ReferenceRecord | None = None,
    local_only: ReferenceRecord | None = None,
    audit: AuditRecord | None = None,
    check: str | None = None,
    membership: MembershipRecord | None = None,
) -> Row:
    """Join the lines of one cell into its result.

    Args:
        cell_id: The id of the cell.
        label: The name of the method in tables and curves.
        training: The line of the cell's training.
        evaluation: The line of its evaluation; without one the result has no scores.
        ceiling: The line of the reference on all real training examples, if it is known.
        local_only: The line of the reference on each client's own examples, if it is known.
        audit: The strongest audit of the cell's claim, if there is one.
        check: The combined result of the checks of its code, ``passed`` or ``failed``; None
            without checks.
        membership: The line of the attack on its saved generator, if there is one.

    Raises:
        ValueError: A score is NaN.
    """
    cell = training["cell"]
    plan = training["plan"] or {}
    ledger: LedgerRecord = {}
    if plan:  # Without a plan there is no ledger. If the line has one, somebody edited it.
        ledger = training["ledger"] or {}
    budget = plan
    if cell["algorithm"] == EXTERNAL:
        budget = _stated_budget(cell)
    error = training["error"]
    if evaluation is not None:
        error = error or evaluation["error"]
    seconds = training["seconds"]
    scored: ScoresRecord = {}
    evaluation_keys = None
    if evaluation is not None and not error:
        scored = evaluation
        evaluation_keys = evaluation.get("evaluation")
        seconds = (seconds or 0.0) + evaluation["seconds"]
    refuted = audit is not None and audit["refuted"]
    status = _status_of(error, plan, ledger, refuted=refuted)
    if status == "unaccounted":
        error = {"type": "Unaccounted", "message": ledger["unaccounted"], "traceback": ""}
    # Each column takes its value from one of these groups (see Column.path).
    groups = {
        "derived": {
            "cell_id": cell_id,
            "label": label,
            "status": status,
            "error": error,
            "claim": budget.get("claim", "none"),
            "check": check,
            "evaluation": _set_keys(evaluation_keys or cell["evaluation"]),
            "chance": 1 / training["task"]["classes"],
            "seconds": seconds,
            "tuning": _tuning_of(training),
        },
        "cell": cell,
        "training": training,
        "budget": budget,
        "ledger": ledger,
        "protection": _protection(training, budget),
        "evaluation": scored,
        "scores": _scores(cell_id, scored, ceiling, local_only, membership),
        "ceiling": ceiling,
        "local_only": local_only,
        "audit": audit,
    }
    values = {name: column.value(groups) for name, column in COLUMNS.items()}
    return Row(values, plan, refuted)


def _status_of(
    error: dict[str, str] | None, plan: Fields, ledger: LedgerRecord, *, refuted: bool
) -> str:
    """Return the status of a result: ``ok`` or one of :data:`UNDRAWN`.

    Args:
        error: The error of the training or evaluation; None if both succeeded.
        plan: The privacy plan; empty without privacy.
        ledger: The totals of what ran; empty without privacy.
        refuted: Whether an audit refutes the claim.
    """
    if error:
        return "failed"
    if ledger.get("unaccounted"):
        return "unaccounted"
    spent = ledger.get("epsilon_spent")
    if spent is not None and spent > plan["epsilon_target"] * (1 + OVERSPENT_TOLERANCE):
        return "overspent"
    if refuted:
        return "refuted"
    return "ok"


def _stated_budget(cell: Fields) -> Fields:
    """Return the budget of external samples as their author states it; they have no plan."""
    epsilon = float(cell["epsilon"])
    claim = "none"
    if epsilon < math.inf:
        claim = cell["params"]["claim"]
    return {
        "epsilon_target": epsilon,
        "claim": claim,
        "delta": cell["delta"],
        "trust": cell["trust"],
    }


def _protection(training: TrainingRecord, budget: Fields) -> Fields | None:
    """Return what the budget protects and by which noise, or None without a budget.

    The noise and the neighbouring relation are known only if fedsim trained by a plan.
    """
    if not budget:
        return None
    cell = training["cell"]
    protection = {
        "unit": cell["unit_column"] or cell["unit"],
        "train_groups": training["train_groups"],
    }
    if training["plan"]:
        protection |= {"relation": "add-or-remove-one", "noise": cell["noise"]}
    return protection


def _set_keys(evaluation: Fields) -> Fields:
    """Return the evaluation keys that scores depend on, without those that are None.

    The unseen site is left out: it has a column of its own.
    """
    return {
        name: value for name, value in evaluation.items() if value is not None and name != "unseen"
    }


def _tuning_of(training: TrainingRecord) -> Fields | None:
    """Return how parameters were chosen and which were, or None for a cell that is not tuned."""
    cell = training["cell"]
    tuning = cell.get("tuning")
    if not tuning:
        return None
    chosen = {name: cell["params"][name] for name in tuning["space"]}
    return {**tuning, "chosen": chosen, "trained": training.get("trials")}


def _scores(
    cell_id: str,
    scored: ScoresRecord,
    ceiling: ReferenceRecord | None,
    local_only: ReferenceRecord | None,
    membership: MembershipRecord | None,
) -> dict[str, float]:
    """Return the scores of an evaluation and of an attack, and those derived from references.

    Raises:
        ValueError: A score is NaN.
    """
    scores = dict(scored.get("scores", {}))
    if membership is not None:
        scores["membership_auc"] = membership["auc"]
    if local_only is not None and scored.get("clients"):
        # The clients' own scores are compared with this mean over the same test examples.
        own_scores = [score for score in local_only["clients"] if score is not None]
        if own_scores:
            scores["client_local_only_balanced_accuracy"] = sum(own_scores) / len(own_scores)
    # NaN is the only value that differs from itself.
    not_numbers = sorted(name for name, score in scores.items() if score != score)
    if not_numbers:
        raise ValueError(f"cell {cell_id}: {not_numbers[0]} is not a number")
    accuracy = scores.get("balanced_accuracy")
    if accuracy is not None and ceiling is not None:
        best = ceiling.get("balanced_accuracy")
        if best:
            scores["share_of_ceiling"] = accuracy / best
    return scores


def large_deltas(rows: Iterable[Row], *, published: bool = False) -> list[str]:
    """Return one warning for each budget whose δ is too large for its number of units.

    See :func:`fedsim.privacy.plan.large_delta`.

    Args:
        rows: Results, of which those without a finite ε are ignored.
        published: Whether the warnings will leave the simulation. They then name no numbers of
            units, which are private.
    """
    warnings = []
    for row in rows:
        if not row.is_private:
            continue
        units = row.train_groups or row.train_rows
        if row.unit == "client":
            units = row.clients
        if units is not None:
            warning = large_delta(
                row.unit,
                row.delta,
                units,
                row.dataset,
                published=published,
            )
            warnings.append(warning)
    return [warning for warning in dict.fromkeys(warnings) if warning]


@dataclass(frozen=True)
class Column:
    """One column of a result.

    Attributes:
        words: The sentence that describes it in the reference page, with its unit.
        path: Where its value is found: a group of :func:`row_of`, then one key or more, joined by
            dots.
        dtype: The pandas type of a column without any value.
    """

    words: str
    path: str
    dtype: str = "object"

    def value(self, groups: Mapping[str, Any]) -> Any:
        """Return the value of the column, or None where a group or a key is missing."""
        value: Any = groups
        for key in self.path.split("."):
            value = (value or {}).get(key)
        return value


def score_column(name: str) -> Column:
    """Return the column of a measure."""
    return Column(MEASURES[name].title, f"scores.{name}", "float64")


COLUMNS: dict[str, Column] = {
    "cell_id": Column(
        "A hash of everything that can change the result.",
        "derived.cell_id",
    ),
    "source": Column(
        "A hash of the code that trained.",
        "cell.source",
    ),
    "evaluation_source": Column(
        "A hash of the code that computed scores and references.",
        "evaluation.evaluation_source",
    ),
    "status": Column(
        "How the cell ended. `ok`: its scores count. `failed`: `error` says why. `overspent`: the "
        "ε spent exceeds the target. `unaccounted`: the ledger differs from the plan, so ε is "
        "unknown and `error` says why. `refuted`: an audit found a larger ε than the target, or a "
        "larger sensitivity than that of a proved claim.",
        "derived.status",
    ),
    "error": Column(
        "Why the cell failed: `type`, `message` and `traceback`.",
        "derived.error",
    ),
    "algorithm": Column(
        "The name of the algorithm as the grid gives it.",
        "cell.algorithm",
    ),
    "label": Column(
        "The name that tables and curves give the algorithm with these parameters.",
        "derived.label",
    ),
    "params": Column(
        "All parameters, including defaults. A data frame has one column per parameter, "
        "`params.NAME`.",
        "cell.params",
    ),
    "yields": Column(
        "What the algorithm produces: `generator` or `classifier`.",
        "training.yields",
    ),
    "dataset": Column(
        "The name that tables give the data set.",
        "training.dataset",
    ),
    "dataset_hash": Column(
        "The fingerprint of the data set.",
        "cell.dataset_hash",
    ),
    "public": Column(
        "The name that tables give the public examples that the algorithm used. It is missing if "
        "it used none.",
        "cell.public",
    ),
    "public_hash": Column(
        "The fingerprint of the public examples.",
        "cell.public_hash",
    ),
    "public_licence": Column(
        "The licence of the public examples' source, if it is known.",
        "cell.public_licence",
    ),
    "scheme": Column(
        "The scheme of the partition.",
        "cell.partition.scheme",
    ),
    "alpha": Column(
        "The Dirichlet concentration of the partition. It is missing for schemes without one.",
        "training.alpha",
        "float64",
    ),
    "clients": Column(
        "The number of clients.",
        "cell.clients",
        "Int64",
    ),
    "partition_hash": Column(
        "The fingerprint of the partition.",
        "training.partition",
    ),
    "train_rows": Column(
        "The number of training examples, summed over clients.",
        "training.train_rows",
        "Int64",
    ),
    "train_groups": Column(
        "The number of groups of these examples, if the unit is a group.",
        "protection.train_groups",
        "Int64",
    ),
    "seed": Column(
        "The root of all random numbers of the cell.",
        "cell.seed",
        "Int64",
    ),
    "epsilon_target": Column(
        "The ε of the budget.",
        "budget.epsilon_target",
        "float64",
    ),
    "epsilon_spent": Column(
        "The ε of the steps that ran, for neighbours that differ by adding or removing one unit.",
        "ledger.epsilon_spent",
        "float64",
    ),
    "delta": Column(
        "The δ of the budget.",
        "budget.delta",
        "float64",
    ),
    "unit": Column(
        "What the budget protects: `example`, `client`, or the column whose values are groups.",
        "protection.unit",
    ),
    "relation": Column(
        "How neighbouring data sets differ.",
        "protection.relation",
    ),
    "trust": Column(
        "Who may see which messages. `aggregate`: only their sum over clients is seen. `silo`: "
        "every message is seen.",
        "budget.trust",
    ),
    "scope": Column(
        "Which parts carry noise. `joint`: everything does. `shared`: only the shared part does. "
        "`hypernetwork`: only the hypernetwork does. Trained codes then stay at their clients, and "
        "synthesis uses codes that are drawn, not trained, unless ε is infinite.",
        "budget.scope",
    ),
    "claim": Column(
        "What ε rests on. For external samples it is as stated by their author, not verified.",
        "derived.claim",
    ),
    "check": Column(
        "How a check of this code, unit, trust and these parameters ended: `passed` or `failed`. "
        "Numbers of rounds and steps may differ from those of the check.",
        "derived.check",
    ),
    "accountant": Column(
        "The accountant that computed ε.",
        "ledger.accountant",
    ),
    "noise": Column(
        "Where noise comes from: `seeded` or `secret`.",
        "protection.noise",
    ),
    "mechanisms": Column(
        "What the ledger counted for the data of every client: `release`, `noise_multiplier` (the "
        "standard deviation of the noise divided by the sensitivity), `sample_rate` and `count`. "
        "With `delta` and `relation` anyone can compute `epsilon_spent` again.",
        "ledger.mechanisms",
    ),
    "tuning": Column(
        "How some of `params` were chosen, and from how many trainings. It is missing if the grid "
        "gave all of them.",
        "derived.tuning",
    ),
    "selection": Column(
        "For a tuned result whose budget pays for its search: the mechanisms of all trainings and "
        "the noise of their scores, from which anyone can compute `epsilon_spent`. `mechanisms` "
        "are then those of the best training and of its score.",
        "budget.selection",
    ),
    "noise_at": Column(
        "Where noise is added: once to the `sum`, or by each of the `clients`.",
        "ledger.noise_at",
    ),
    "counted_by": Column(
        "The revision of the accounting code.",
        "ledger.counted_by",
    ),
    "audit_epsilon_lower": Column(
        "The largest ε that an audit refutes, at a confidence of 95 % for each audit.",
        "audit.epsilon_lower",
        "float64",
    ),
    "audit_pairs": Column(
        "The number of pairs of trainings of the audit.",
        "audit.pairs",
        "Int64",
    ),
    "audit_canary_ratio": Column(
        "What the canary adds to one step, divided by the claimed sensitivity.",
        "audit.canary_ratio",
        "float64",
    ),
    "audit_params": Column(
        "The parameters that the audit changed to make trainings short, with their values there.",
        "audit.params",
    ),
    "evaluation": Column(
        "The evaluation keys that scores depend on. A data frame has one column per key, "
        "`evaluation.KEY`.",
        "derived.evaluation",
    ),
    "unseen": Column(
        "The site that took no part in training and gave the test examples of all scores.",
        "cell.evaluation.unseen",
    ),
    "tested": Column(
        "Which test examples each client's own scores are computed on.",
        "evaluation.tested",
    ),
    "label_shares": Column(
        "How frequent labels are in `accuracy`. In personal scores they are as frequent as with "
        "the client.",
        "evaluation.label_shares",
    ),
    **{name: score_column(name) for name in MEASURES},
    "recall_per_class": Column(
        "The recall of each class, in the order of the classes. It is null for a class without "
        "test examples.",
        "evaluation.recalls",
    ),
    "ceiling_balanced_accuracy": Column(
        "The balanced accuracy of the best linear probe trained on all real training examples.",
        "ceiling.balanced_accuracy",
        "float64",
    ),
    "ceiling_accuracy": Column(
        "The same for accuracy, with the penalty and class weights that are best for it.",
        "ceiling.accuracy",
        "float64",
    ),
    "reference_rows": Column(
        "The number of training examples that the probe of the ceiling was trained on.",
        "ceiling.reference_rows",
        "Int64",
    ),
    "local_only_balanced_accuracy": Column(
        "The mean over clients of the balanced accuracy of a probe trained on the client's own "
        "examples.",
        "local_only.mean",
        "float64",
    ),
    "chance": Column(
        "The accuracy of guessing: 1 divided by the number of classes.",
        "derived.chance",
        "float64",
    ),
    "uplink_bytes": Column(
        "The bytes that all clients send in all rounds, by the shapes of messages.",
        "training.uplink_bytes",
        "Int64",
    ),
    "downlink_bytes": Column(
        "The bytes that all clients receive in all rounds.",
        "training.downlink_bytes",
        "Int64",
    ),
    "parameters": Column(
        "How many numbers one client trains.",
        "training.parameters",
        "Int64",
    ),
    "seconds": Column(
        "The wall time of training and evaluation in seconds.",
        "derived.seconds",
        "float64",
    ),
    "train_seconds": Column(
        "The wall time of the training in seconds.",
        "training.seconds",
        "float64",
    ),
    "evaluation_seconds": Column(
        "The wall time of the evaluation in seconds.",
        "evaluation.seconds",
        "float64",
    ),
    "versions": Column(
        "The versions of Python and of the packages that computed the cell.",
        "training.versions",
    ),
    "generator": Column(
        "The SHA-256 of the tensors that the training left. It is missing if none were kept.",
        "training.state",
    ),
}
"""The columns by name, in the order in which a result has them."""
_MAPPINGS = ("params", "evaluation")
"""The columns that hold a mapping; a data frame has one column for each of its keys."""
WHERE = ("cell_id", "label", "dataset", "alpha", "clients", "epsilon_target", "seed")
"""The columns that say which cell a line of rounds, clients or audits belongs to."""


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a data frame with one line per cell and one column per result column.

    A missing value is NaN among floats, ``<NA>`` among whole numbers and None elsewhere.
    """
    return _frame({name: [row.values.get(name) for row in rows] for name in COLUMNS})


def frame_of_lines(lines: Iterable[Mapping[str, Any]], rows: Sequence[Row]) -> pd.DataFrame:
    """Return a data frame of lines, each with the columns :data:`WHERE` of its cell.

    Args:
        lines: Lines of rounds, clients or audits, each with the ``cell_id`` of its cell.
        rows: The results of the cells.
    """
    cells = {row.cell_id: {name: row.values[name] for name in WHERE} for row in rows}
    records = [{**cells.get(line["cell_id"], {}), **line} for line in lines]
    names = dict.fromkeys(chain(WHERE, *records))
    return _frame({name: [record.get(name) for record in records] for name in names})


def _frame(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return a data frame of columns by name, with one column for each key of a mapping."""
    import pandas as pd

    flat: dict[str, Sequence[Any]] = {}
    for name, values in columns.items():
        if name not in _MAPPINGS:
            flat[name] = values
            continue
        mappings = [value or {} for value in values]
        for key in dict.fromkeys(chain(*mappings)):
            flat[f"{name}.{key}"] = [mapping.get(key) for mapping in mappings]
    return pd.DataFrame(
        {name: pd.Series(values, dtype=_dtype(name, values)) for name, values in flat.items()}
    )


def _dtype(name: str, values: Sequence[Any]) -> str | None:
    """Return the pandas type of a column, by its values; None lets pandas decide.

    Whole numbers and Booleans with gaps get a type that has missing values. A column without any
    value gets the type that :data:`COLUMNS` declares. Numbers beyond 64 bits stay objects.
    """
    present = [value for value in values if value is not None]
    has_gaps = len(present) < len(values)
    kinds = {type(value) for value in present}
    if not kinds and name in COLUMNS:
        return COLUMNS[name].dtype
    if kinds == {bool}:
        return "boolean" if has_gaps else "bool"
    if kinds == {int} and max(map(abs, present)) < 2**63:
        return "Int64" if has_gaps else "int64"
    if kinds and kinds <= {int, float}:
        return "float64"
    if kinds == {str}:
        return None
    return "object"
