"""What a row has: every column, declared once. Frames, tables, pictures, comparisons, boards and the docs follow from this list."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import dump
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import THEOREMS, large_delta
from fedsim.privacy.selection import Selection
from fedsim.words import setting, spelled

if TYPE_CHECKING:
    import pandas as pd

Line = Mapping[str, Any]
UNDRAWN = ("failed", "overspent", "unaccounted", "refuted")
"""The statuses of rows that are in no mean and no picture."""


@dataclass(frozen=True)
class Joined:
    """The lines of a cell, of which its row is made.

    Attributes:
        cell_id: of the cell.
        label: what tables and curves call its algorithm.
        training: its line.
        judgement: None before it is judged, and where its training failed.
        ceiling, local_only: lines of its references; None where they are not known.
        audit: of its claim; None without one.
        check: how the check of its code ended; None: none says anything.
    """

    cell_id: str
    label: str
    training: Line
    judgement: Line | None = None
    ceiling: Line | None = None
    local_only: Line | None = None
    audit: Line | None = None
    check: str | None = None

    @property
    def cell(self) -> Line:
        """The cell, as its training had it."""
        return self.training["cell"]  # type: ignore[no-any-return]

    @property
    def plan(self) -> Line:
        """Its privacy plan; empty where it has none."""
        return self.training["plan"] or {}

    @property
    def ledger(self) -> Line:
        """What was spent; empty without a plan, and where nothing was."""
        return (self.training["ledger"] or {}) if self.plan else {}

    @cached_property
    def failure(self) -> Line | None:
        """Why its training or its judging failed."""
        failure: Line | None = self.training["error"] or (self.judgement["error"] if self.judgement is not None else None)
        return failure

    @property
    def error(self) -> Line | None:
        """Why it failed, or why its epsilon is unknown."""
        unaccounted = self.ledger.get("unaccounted")
        return self.failure or ({"type": "Unaccounted", "message": unaccounted, "traceback": ""} if unaccounted else None)

    @property
    def judged(self) -> Line:
        """Its judgement, if that ended well; else empty."""
        return self.judgement if self.judgement is not None and self.failure is None else {}

    @property
    def status(self) -> str:
        """See the column."""
        if self.error is not None:
            return "failed" if self.failure is not None else "unaccounted"
        target, spent = self.plan.get("epsilon_target"), self.ledger.get("epsilon_spent")
        if target is not None and spent is not None and math.isfinite(target) and spent > target * (1 + 1e-6):
            return "overspent"
        return "refuted" if self.audit is not None and self.audit["refuted"] else "ok"

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Its measures, those that it has."""
        scores = dict(self.judged.get("scores", {}))
        if self.local_only is not None and self.judged.get("clients"):
            known = [score for score in self.local_only["clients"] if score is not None]
            scores |= {"client_local_only_balanced_accuracy": sum(known) / len(known)} if known else {}
        if strange := sorted(name for name, score in scores.items() if score != score):  # NaN alone is not equal to itself
            raise ValueError(f"cell {self.cell_id}: {strange[0]} is not a number")
        accuracy, ceiling = scores.get("balanced_accuracy"), (self.ceiling or {}).get("balanced_accuracy")
        return scores | ({"share_of_ceiling": accuracy / ceiling} if accuracy is not None and ceiling else {})

    def row(self) -> Row:
        """The row of the cell."""
        return Row({name: column.of(self) for name, column in COLUMNS.items()}, self.plan)


@dataclass(frozen=True)
class Row:
    """A cell's row. Every column is an attribute; one that it does not hold is None.

    Attributes:
        values: its columns by name.
        plan: its privacy plan; empty where it has none.
    """

    values: Mapping[str, Any]
    plan: Line = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name not in COLUMNS:
            raise AttributeError(f"a row has no column '{name}'")
        return self.values.get(name)

    @property
    def setting(self) -> str:
        """Method, data set, alpha, clients, epsilon and seed in a few words."""
        return setting(self.label, self.dataset, alpha=self.alpha, clients=self.clients, epsilon=self.epsilon_target, seed=self.seed)

    @property
    def scores(self) -> dict[str, float]:
        """Its measures, those that it has."""
        return {name: self.values[name] for name in MEASURES if self.values.get(name) is not None}

    @property
    def given_params(self) -> dict[str, Any]:
        """The parameters without those that were chosen, which differ between the seeds of one setting."""
        return {name: value for name, value in self.params.items() if name not in (self.tuning or {}).get("chosen", ())}

    @property
    def ran(self) -> tuple[Mechanism, ...]:
        """The mechanisms that the ledger counted."""
        return tuple(Mechanism(**each) for each in self.mechanisms or ())

    @cached_property
    def search(self) -> Selection | None:
        """The cost of the search that it paid for."""
        paid: Selection | None = self.selection and TypeAdapter(Selection).validate_json(dump(self.selection))
        return paid

    @property
    def drawn_claim(self) -> str | None:
        """The claim as tables and curves have it: one in which a check found a fault is no theorem."""
        return "heuristic" if self.check == "failed" and self.claim in THEOREMS else self.claim

    @property
    def audited_form(self) -> str:
        """What was audited where that is not the cell's own parameters, in words; else empty."""
        changed = ", ".join(f"{name} {spelled(value)}" for name, value in (self.audit_params or {}).items())
        return changed and f"of a short form: {changed}"


def large_deltas(rows: Iterable[Row]) -> list[str]:
    """Warnings of budgets whose delta is too large for the data, each once (:func:`fedsim.privacy.plan.large_delta`)."""
    private = [row for row in rows if row.epsilon_target is not None and math.isfinite(row.epsilon_target)]
    units = [row.clients if row.unit == "client" else row.train_groups or row.train_rows for row in private]
    budgets = dict.fromkeys((row.unit, row.delta, many, row.dataset) for row, many in zip(private, units, strict=True))
    return [text for budget in budgets if None not in budget and (text := large_delta(*budget))]


class Kind(Enum):
    """What a column is of: where a row stands, which method it is, what it found, and what made it."""

    PLACE, METHOD, BUDGET, SEED = "place", "method", "budget", "seed"
    STATUS, FACT, PRIVACY, SCORE, COST = "status", "fact", "privacy", "score", "cost"
    CLOCK, PROVENANCE = "clock", "provenance"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: what it is of.
        words: what it says, with its unit.
        of: how it is had of the lines of a cell.
        dtype: of its column in a frame where values are missing.
    """

    kind: Kind
    words: str
    of: Callable[[Joined], Any] = field(repr=False)
    dtype: str = "object"


def _cell(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.cell.get(key)


def _training(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.training.get(key)


def _plan(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.plan.get(key)


def _ledger(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.ledger.get(key)


def _judged(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.judged.get(key)


def _audited(key: str) -> Callable[[Joined], Any]:
    return lambda of: of.audit and of.audit[key]


def _private(of: Callable[[Joined], Any]) -> Callable[[Joined], Any]:
    """None of a method without a plan."""
    return lambda joined: of(joined) if joined.plan else None


def score_column(name: str) -> Column:
    """The column of a measure."""
    return Column(Kind.SCORE, MEASURES[name].title, lambda of: of.scores.get(name), "float64")


def _evaluation(of: Joined) -> dict[str, Any]:
    """Of the judgement; of the training, without what it leaves open, where there is none."""
    keys = of.judged.get("evaluation") or {name: value for name, value in of.cell["evaluation"].items() if value is not None}
    return {name: value for name, value in keys.items() if name != "unseen"}


def _seconds(of: Joined) -> float | None:
    trained: float | None = of.training["seconds"]
    return (trained or 0.0) + of.judged["seconds"] if of.judged else trained


def _tuning(of: Joined) -> dict[str, Any] | None:
    tuning = of.cell.get("tuning")
    return tuning and {
        **tuning,
        "chosen": {name: of.cell["params"][name] for name in tuning["space"]},
        "trained": of.training.get("trials"),
    }


COLUMNS: dict[str, Column] = {
    "cell_id": Column(Kind.PROVENANCE, "hash of all that can change the row", lambda of: of.cell_id),
    "source": Column(Kind.PROVENANCE, "hash of the code that trained", _cell("source")),
    "judged": Column(Kind.PROVENANCE, "hash of the code that computed scores and references", _judged("judged")),
    "status": Column(
        Kind.STATUS,
        "`ok`; `failed`, see `error`; `overspent`: the epsilon spent exceeds the target; `unaccounted`: the ledger differs from the plan, "
        "so epsilon is unknown and `error` says why; `refuted`: an audit's bound exceeds the target, or a sensitivity was exceeded",
        lambda of: of.status,
    ),
    "error": Column(Kind.STATUS, "why a cell failed: `type`, `message`, `traceback`", lambda of: of.error),
    "algorithm": Column(Kind.METHOD, "its name, as the grid gives it", _cell("algorithm")),
    "label": Column(Kind.METHOD, "what tables and curves call the algorithm with these parameters", lambda of: of.label),
    "params": Column(Kind.METHOD, "all parameters, defaults included; in a frame a column each, `params.NAME`", _cell("params")),
    "yields": Column(Kind.FACT, "what the algorithm makes: `generator` or `classifier`", _training("yields")),
    "dataset": Column(Kind.PLACE, "what tables call the data set", _training("dataset")),
    "dataset_hash": Column(Kind.PLACE, "fingerprint of the data", _cell("dataset_hash")),
    "public": Column(Kind.METHOD, "what tables call the public rows that the algorithm used; missing: none", _cell("public")),
    "public_hash": Column(Kind.METHOD, "their fingerprint", _cell("public_hash")),
    "public_licence": Column(Kind.FACT, "of their source, in words, where it is known", _cell("public_licence")),
    "scheme": Column(Kind.PLACE, "of the partition", lambda of: of.cell["partition"]["scheme"]),
    "alpha": Column(Kind.PLACE, "Dirichlet concentration; missing for schemes without one", _training("alpha"), "float64"),
    "clients": Column(Kind.PLACE, "how many", _cell("clients"), "Int64"),
    "partition_hash": Column(Kind.FACT, "fingerprint of the partition", _training("partition")),
    "train_rows": Column(Kind.FACT, "training rows that the clients hold together", _training("train_rows"), "Int64"),
    "train_groups": Column(Kind.FACT, "how many groups these are, where the unit is a group", _private(_training("train_groups")), "Int64"),
    "seed": Column(Kind.SEED, "root of all random numbers of the cell", _cell("seed"), "Int64"),
    "epsilon_target": Column(Kind.BUDGET, "the budget", _plan("epsilon_target"), "float64"),
    "epsilon_spent": Column(Kind.PRIVACY, "counted from the steps that ran, under add-or-remove-one", _ledger("epsilon_spent"), "float64"),
    "delta": Column(Kind.BUDGET, "of the budget", _plan("delta"), "float64"),
    "unit": Column(
        Kind.BUDGET,
        "what the budget protects: `example`, `client`, or a group by its column",
        _private(lambda of: of.cell["unit_column"] or of.cell["unit"]),
    ),
    "relation": Column(Kind.PRIVACY, "what neighbouring data sets differ in", _private(lambda of: "add-or-remove-one")),
    "trust": Column(Kind.BUDGET, "who may see what: `aggregate`, only the sum over clients; `silo`, every message", _plan("trust")),
    "scope": Column(
        Kind.PRIVACY,
        "`joint` where all that is trained on private data is noised, `shared` (FedHypeVAE's `hypernetwork`) where only what is shared is",
        _plan("scope"),
    ),
    "claim": Column(Kind.PRIVACY, "what epsilon rests on", lambda of: of.plan.get("claim", "none")),
    "check": Column(
        Kind.PRIVACY,
        "how a check of this code and these parameters, in this unit and trust, ended: `passed` or `failed`; missing: none says anything",
        lambda of: of.check,
    ),
    "accountant": Column(Kind.PRIVACY, "which accountant computed epsilon", _ledger("accountant")),
    "noise": Column(Kind.PRIVACY, "`seeded` or `secret`", _private(_cell("noise"))),
    "mechanisms": Column(
        Kind.PRIVACY,
        "what the ledger counted for the data of every client: `release`, `noise_multiplier` (standard deviation of the noise over the "
        "sensitivity), `sample_rate` and `count`; with `delta` and `relation` anyone can compute `epsilon_spent` again",
        _ledger("mechanisms"),
    ),
    "tuning": Column(Kind.METHOD, "how some of `params` were chosen, and how many trainings there were; missing: they were given", _tuning),
    "selection": Column(
        Kind.PRIVACY,
        "of a tuned row that pays for its search, the mechanisms of its trainings and the noise of their scores, from which anyone can "
        "compute `epsilon_spent`; `mechanisms` are the best training's and its score's",
        _plan("selection"),
    ),
    "noise_at": Column(
        Kind.PRIVACY,
        "whether noise is added once to the `sum` over clients or by every one of the `clients`",
        _ledger("noise_at"),
    ),
    "counted_by": Column(Kind.PROVENANCE, "revision of the accounting code", _ledger("counted_by")),
    "audit_epsilon_lower": Column(
        Kind.PRIVACY,
        "the largest epsilon of the claimed mechanism with other noise that an audit refutes with 95 % confidence",
        _audited("epsilon_lower"),
        "float64",
    ),
    "audit_pairs": Column(Kind.PRIVACY, "pairs of trainings of the audit", _audited("pairs"), "Int64"),
    "audit_canary_ratio": Column(
        Kind.PRIVACY, "what the audit's canary adds to a step, in units of the claimed sensitivity", _audited("canary_ratio"), "float64"
    ),
    "audit_params": Column(Kind.PRIVACY, "the parameters that the audit changed to be short, with their values there", _audited("params")),
    "evaluation": Column(
        Kind.PLACE, "the keys of the grid's `evaluation` that scores are by; in a frame a column each, `evaluation.KEY`", _evaluation
    ),
    "unseen": Column(
        Kind.PLACE, "a site that took no part and on whose test rows all scores are", lambda of: of.cell["evaluation"].get("unseen")
    ),
    "tested": Column(Kind.FACT, "which test rows the clients' own scores are from", _judged("tested")),
    "label_shares": Column(
        Kind.FACT,
        "how frequent labels are in `accuracy`. Personal scores use the client's shares, all others equal ones. Missing for a classifier, "
        "which has its own",
        _judged("label_shares"),
    ),
    **{name: score_column(name) for name in MEASURES},
    "recall_per_class": Column(Kind.FACT, "in the order of the classes; null for a class without test rows", _judged("recalls")),
    "ceiling_balanced_accuracy": Column(
        Kind.FACT,
        "of the best linear probe of the pooled real training rows",
        lambda of: of.ceiling and of.ceiling["balanced_accuracy"],
        "float64",
    ),
    "ceiling_accuracy": Column(Kind.FACT, "of the same", lambda of: of.ceiling and of.ceiling["accuracy"], "float64"),
    "local_only_balanced_accuracy": Column(
        Kind.FACT, "mean over clients of probes of their own rows", lambda of: of.local_only and of.local_only["mean"], "float64"
    ),
    "chance": Column(Kind.FACT, "of a guess among all classes", lambda of: 1 / of.training["task"]["classes"], "float64"),
    "uplink_bytes": Column(
        Kind.COST,
        "sent by all clients in all rounds, from the shapes of messages; the row count that weighs an update without privacy is left out",
        _training("uplink_bytes"),
        "Int64",
    ),
    "downlink_bytes": Column(Kind.COST, "received by all clients in all rounds", _training("downlink_bytes"), "Int64"),
    "parameters": Column(Kind.COST, "how many numbers one client trains", _training("parameters"), "Int64"),
    "seconds": Column(Kind.CLOCK, "wall time, training and judging", _seconds, "float64"),
    "train_seconds": Column(Kind.CLOCK, "of the training", _training("seconds"), "float64"),
    "judge_seconds": Column(Kind.CLOCK, "of the judging", _judged("seconds"), "float64"),
    "versions": Column(Kind.PROVENANCE, "of Python and the packages that computed the cell", _training("versions")),
    "generator": Column(Kind.PROVENANCE, "SHA-256 of the tensors that the training left; missing where none were kept", _training("state")),
}
"""The columns by name, in the order of a row; one more is one more entry."""
_SPREAD = ("params", "evaluation")
"""Mappings that are a column a key in a frame."""
WHERE = ("cell_id", "label", "dataset", "alpha", "clients", "epsilon_target", "seed")
"""What places a cell's rounds, clients and audits in the grid."""


def names(*kinds: Kind) -> list[str]:
    """The columns of some kinds."""
    return [name for name, column in COLUMNS.items() if column.kind in kinds]


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a cell, a column a column; what is missing is NaN among floats, ``<NA>`` among whole numbers, None elsewhere."""
    return _frame({name: [row.values.get(name) for row in rows] for name in COLUMNS})


def frame_of_lines(lines: Iterable[Line], rows: Sequence[Row]) -> pd.DataFrame:
    """Lines of cells, by ``cell_id``, with what places each cell in the grid before their own columns."""
    places = {row.cell_id: {name: getattr(row, name) for name in WHERE} for row in rows}
    records = [{**places.get(line["cell_id"], {}), **line} for line in lines]
    held = dict.fromkeys([*WHERE, *(name for record in records for name in record)])
    return _frame({name: [record.get(name) for record in records] for name in held})


def _frame(values: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    import pandas as pd

    flat: dict[str, Sequence[Any]] = {}
    for name, held in values.items():
        if name in _SPREAD:
            keys = dict.fromkeys(key for each in held for key in each or ())
            flat |= {f"{name}.{key}": [(each or {}).get(key) for each in held] for key in keys}
        else:
            flat[name] = held
    return pd.DataFrame({name: pd.Series(held, dtype=_dtype(name, held)) for name, held in flat.items()})


def _dtype(name: str, values: Sequence[Any]) -> str | None:
    """By the values, where they are numbers; None: pandas decides."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return COLUMNS[name].dtype if name in COLUMNS else "object"
    if kinds == {bool}:
        return "boolean" if None in values else "bool"
    if kinds == {int} and max(abs(value) for value in values if value is not None) < 2**63:
        return "Int64" if None in values else "int64"
    return "float64" if kinds <= {int, float} else None if kinds == {str} else "object"
