"""What a row has: every column, declared once. Frames, tables, pictures, comparisons, boards and
the docs follow from this list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import plain_json
from fedsim.plugins.registry import EXTERNAL
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import THEOREMS, large_delta
from fedsim.privacy.selection import Selection
from fedsim.words import number, setting, spelled

if TYPE_CHECKING:
    import pandas as pd

Line = Mapping[str, Any]
UNDRAWN = ("failed", "overspent", "unaccounted", "refuted")
"""The statuses of rows that are in no mean and no picture."""
UNVERIFIED = "unverified"
"""The claim of external samples as tables and curves have it, whatever their author calls it."""


@dataclass(frozen=True)
class Row:
    """A cell's row: its columns by name, and its privacy plan. Every column is an attribute; one
    that it does not hold is None.
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
        """Its measures, those that it has."""
        return {name: self.values[name] for name in MEASURES if self.values.get(name) is not None}

    @property
    def given_params(self) -> dict[str, Any]:
        """The parameters without those that were chosen, which differ between the seeds of one
        setting.
        """
        return {
            name: value
            for name, value in self.params.items()
            if name not in (self.tuning or {}).get("chosen", ())
        }

    @property
    def ran(self) -> tuple[Mechanism, ...]:
        """The mechanisms that the ledger counted."""
        return tuple(Mechanism(**each) for each in self.mechanisms or ())

    @cached_property
    def search(self) -> Selection | None:
        """The cost of the search that it paid for."""
        paid: Selection | None = self.selection and TypeAdapter(Selection).validate_json(
            plain_json(self.selection)
        )
        return paid

    @property
    def is_external(self) -> bool:
        """Whether its synthetic rows were made elsewhere."""
        return bool(self.algorithm == EXTERNAL)

    @property
    def drawn_claim(self) -> str | None:
        """The claim as tables and curves have it: one in which a check found a fault is no
        theorem, and nobody here verified that of external samples.
        """
        if self.is_external and self.claim != "none":
            return UNVERIFIED
        if self.check == "failed" and self.claim in THEOREMS:
            return "heuristic"
        claim: str | None = self.claim
        return claim

    @property
    def outcome(self) -> str:
        """Its result in a few words."""
        if self.error is not None:
            if self.status == "unaccounted":
                kind = "unaccounted"
            else:
                kind = f"failed, {self.error['type']}"
            return f"{kind}: {self.error['message'].strip().partition(chr(10))[0]}"
        words = f"balanced accuracy {self.balanced_accuracy:.3f}"
        if self.epsilon_spent is not None:
            words += f", ε spent {number(self.epsilon_spent, 3)}"
        if self.status == "overspent":
            return f"overspent ({words} of {number(self.epsilon_target)})"
        if self.status == "refuted":
            found = f"an audit finds ε ≥ {number(self.audit_epsilon_lower, 3)}"
            if self.audit_epsilon_lower <= (self.epsilon_target or 0.0):
                found = (
                    f"a canary adds {number(self.audit_canary_ratio, 3)} of the claimed sensitivity"
                )
            return f"refuted (ε = {number(self.epsilon_target)} claimed, {found})"
        return words

    @property
    def audited_form(self) -> str:
        """What was audited where that is not the cell's own parameters, in words; else empty."""
        changed = ", ".join(
            f"{name} {spelled(value)}" for name, value in (self.audit_params or {}).items()
        )
        return changed and f"of a short form: {changed}"


def row_of(
    cell_id: str,
    label: str,
    training: Line,
    judgement: Line | None = None,
    ceiling: Line | None = None,
    local_only: Line | None = None,
    audit: Line | None = None,
    check: str | None = None,
) -> Row:
    """The row of a cell, by its lines: without a judgement as its training left it; references,
    audit and check where they are known.
    """
    cell = training["cell"]
    plan = training["plan"] or {}
    told = plan
    if cell["algorithm"] == EXTERNAL:  # in place of a plan what their author states
        epsilon = float(cell["epsilon"])
        claim = cell["params"]["claim"]
        told = {
            "epsilon_target": epsilon,
            "claim": claim if epsilon < math.inf else "none",
            "delta": cell["delta"],
            "trust": cell["trust"],
        }
    if plan:
        ledger = training["ledger"] or {}
    else:
        ledger = {}
    tuning = cell.get("tuning")
    failure = training["error"] or (judgement and judgement["error"])
    judged: Line = judgement if judgement is not None and failure is None else {}
    evaluation = judged.get("evaluation") or {
        name: value for name, value in cell["evaluation"].items() if value is not None
    }
    unaccounted = ledger.get("unaccounted")
    if failure or unaccounted:
        if failure:
            status = "failed"
        else:
            status = "unaccounted"
    else:
        if _is_overspent(plan, ledger):
            status = "overspent"
        elif audit is not None and audit["refuted"]:
            status = "refuted"
        else:
            status = "ok"
    own = {
        "cell_id": cell_id,
        "label": label,
        "status": status,
        "error": failure
        or (
            {"type": "Unaccounted", "message": unaccounted, "traceback": ""}
            if unaccounted
            else None
        ),
        "claim": told.get("claim", "none"),
        "check": check,
        "evaluation": {name: value for name, value in evaluation.items() if name != "unseen"},
        "chance": 1 / training["task"]["classes"],
        "seconds": (training["seconds"] or 0.0) + judged["seconds"]
        if judged
        else training["seconds"],
    }
    if tuning:
        chosen = {name: cell["params"][name] for name in tuning["space"]}
        own["tuning"] = {**tuning, "chosen": chosen, "trained": training.get("trials")}
    unit = cell["unit_column"] or cell["unit"]
    groups = training["train_groups"]
    private = {
        "unit": unit,
        "train_groups": groups,
        **({"relation": "add-or-remove-one", "noise": cell["noise"]} if plan else {}),
    }
    lines = {
        "own": own,
        "cell": cell,
        "training": training,
        "plan": told,
        "ledger": ledger,
        "private": private if told else None,
    }
    lines |= {"judged": judged, "ceiling": ceiling, "local_only": local_only, "audit": audit}
    lines["scores"] = _scores(cell_id, judged, ceiling, local_only)
    return Row({name: column.value(lines) for name, column in COLUMNS.items()}, plan)


def _is_overspent(plan: Line, ledger: Line) -> bool:
    target = plan.get("epsilon_target")
    spent = ledger.get("epsilon_spent")
    return (
        target is not None
        and spent is not None
        and math.isfinite(target)
        and spent > target * (1 + 1e-6)
    )


def _scores(
    cell_id: str, judged: Line, ceiling: Line | None, local_only: Line | None
) -> dict[str, float]:
    """The measures of a judgement, and those that are made of one and a reference."""
    scores = dict(judged.get("scores", {}))
    if local_only is not None and judged.get("clients"):
        known = [score for score in local_only["clients"] if score is not None]
        if known:
            scores |= {"client_local_only_balanced_accuracy": sum(known) / len(known)}
    if strange := sorted(
        name for name, score in scores.items() if score != score
    ):  # NaN alone is not equal to itself
        raise ValueError(f"cell {cell_id}: {strange[0]} is not a number")
    accuracy = scores.get("balanced_accuracy")
    best = (ceiling or {}).get("balanced_accuracy")
    return scores | ({"share_of_ceiling": accuracy / best} if accuracy is not None and best else {})


def large_deltas(rows: Iterable[Row], *, published: bool = False) -> list[str]:
    """Warnings of budgets whose delta is too large for the data, each once
    (:func:`fedsim.privacy.plan.large_delta`); without numbers of units if they are ``published``.
    """
    private = [
        row for row in rows if row.epsilon_target is not None and math.isfinite(row.epsilon_target)
    ]
    units = [
        row.clients if row.unit == "client" else row.train_groups or row.train_rows
        for row in private
    ]
    budgets = dict.fromkeys(
        (row.unit, row.delta, many, row.dataset) for row, many in zip(private, units, strict=True)
    )
    texts = (large_delta(*budget, published=published) for budget in budgets if None not in budget)
    return list(dict.fromkeys(text for text in texts if text))


@dataclass(frozen=True)
class Column:
    """One column: what it says, with its unit; where it is among the lines of a cell, by
    :func:`row_of`; and its type in a frame.
    """

    words: str
    of: str
    dtype: str = "object"

    def value(self, lines: Mapping[str, Any]) -> Any:
        """Its value; None where a line or a key is missing."""
        value: Any = lines
        for key in self.of.split("."):
            value = (value or {}).get(key)
        return value


def score_column(name: str) -> Column:
    """The column of a measure."""
    return Column(MEASURES[name].title, f"scores.{name}", "float64")


COLUMNS: dict[str, Column] = {
    "cell_id": Column("hash of all that can change the row", "own.cell_id"),
    "source": Column("hash of the code that trained", "cell.source"),
    "judged": Column("hash of the code that computed scores and references", "judged.judged"),
    "status": Column(
        "`ok`; `failed`, see `error`; `overspent`: the epsilon spent exceeds the target; "
        "`unaccounted`: the ledger differs from the plan, "
        "so epsilon is unknown and `error` says why; `refuted`: an audit's bound exceeds the "
        "target, or a sensitivity was exceeded",
        "own.status",
    ),
    "error": Column("why a cell failed: `type`, `message`, `traceback`", "own.error"),
    "algorithm": Column("its name, as the grid gives it", "cell.algorithm"),
    "label": Column("what tables and curves call the algorithm with these parameters", "own.label"),
    "params": Column(
        "all parameters, defaults included; in a frame a column each, `params.NAME`", "cell.params"
    ),
    "yields": Column("what the algorithm makes: `generator` or `classifier`", "training.yields"),
    "dataset": Column("what tables call the data set", "training.dataset"),
    "dataset_hash": Column("fingerprint of the data", "cell.dataset_hash"),
    "public": Column(
        "what tables call the public rows that the algorithm used; missing: none", "cell.public"
    ),
    "public_hash": Column("their fingerprint", "cell.public_hash"),
    "public_licence": Column("of their source, in words, where it is known", "cell.public_licence"),
    "scheme": Column("of the partition", "cell.partition.scheme"),
    "alpha": Column(
        "Dirichlet concentration; missing for schemes without one", "training.alpha", "float64"
    ),
    "clients": Column("how many", "cell.clients", "Int64"),
    "partition_hash": Column("fingerprint of the partition", "training.partition"),
    "train_rows": Column(
        "training rows that the clients hold together", "training.train_rows", "Int64"
    ),
    "train_groups": Column(
        "how many groups these are, where the unit is a group", "private.train_groups", "Int64"
    ),
    "seed": Column("root of all random numbers of the cell", "cell.seed", "Int64"),
    "epsilon_target": Column("the budget", "plan.epsilon_target", "float64"),
    "epsilon_spent": Column(
        "counted from the steps that ran, under add-or-remove-one",
        "ledger.epsilon_spent",
        "float64",
    ),
    "delta": Column("of the budget", "plan.delta", "float64"),
    "unit": Column(
        "what the budget protects: `example`, `client`, or a group by its column", "private.unit"
    ),
    "relation": Column("what neighbouring data sets differ in", "private.relation"),
    "trust": Column(
        "who may see what: `aggregate`, only the sum over clients; `silo`, every message",
        "plan.trust",
    ),
    "scope": Column(
        "what is noised: `joint`: all; `shared`, `hypernetwork`: only what is shared is",
        "plan.scope",
    ),
    "claim": Column(
        "what epsilon rests on; of external samples as stated by their author, not verified",
        "own.claim",
    ),
    "check": Column(
        "how a check of this code, parameters (but for numbers of rounds and steps), unit and "
        "trust ended: `passed` or `failed`",
        "own.check",
    ),
    "accountant": Column("which accountant computed epsilon", "ledger.accountant"),
    "noise": Column("`seeded` or `secret`", "private.noise"),
    "mechanisms": Column(
        "what the ledger counted for the data of every client: `release`, `noise_multiplier` "
        "(standard deviation of the noise over the "
        "sensitivity), `sample_rate` and `count`; with `delta` and `relation` anyone can "
        "compute `epsilon_spent` again",
        "ledger.mechanisms",
    ),
    "tuning": Column(
        "how some of `params` were chosen, and of how many trainings; missing: they were given",
        "own.tuning",
    ),
    "selection": Column(
        "of a tuned row that pays for its search, the mechanisms of its trainings and the "
        "noise of their scores, from which anyone can "
        "compute `epsilon_spent`; `mechanisms` are the best training's and its score's",
        "plan.selection",
    ),
    "noise_at": Column(
        "whether noise is added once, to the `sum`, or by each of the `clients`", "ledger.noise_at"
    ),
    "counted_by": Column("revision of the accounting code", "ledger.counted_by"),
    "audit_epsilon_lower": Column(
        "the largest epsilon that an audit refutes, at 95 %", "audit.epsilon_lower", "float64"
    ),
    "audit_pairs": Column("pairs of trainings of the audit", "audit.pairs", "Int64"),
    "audit_canary_ratio": Column(
        "what the canary adds to a step over the sensitivity", "audit.canary_ratio", "float64"
    ),
    "audit_params": Column(
        "the parameters that the audit changed to be short, with their values there", "audit.params"
    ),
    "evaluation": Column(
        "the keys that scores are by; in a frame a column each, `evaluation.KEY`", "own.evaluation"
    ),
    "unseen": Column(
        "a site that took no part and on whose test rows all scores are", "cell.evaluation.unseen"
    ),
    "tested": Column("which test rows the clients' own scores are from", "judged.tested"),
    "label_shares": Column(
        "how frequent labels are in `accuracy`, a client's in personal scores",
        "judged.label_shares",
    ),
    **{name: score_column(name) for name in MEASURES},
    "recall_per_class": Column(
        "in the order of the classes; null for a class without test rows", "judged.recalls"
    ),
    "ceiling_balanced_accuracy": Column(
        "of a linear probe of all real training rows", "ceiling.balanced_accuracy", "float64"
    ),
    "ceiling_accuracy": Column("of the same", "ceiling.accuracy", "float64"),
    "local_only_balanced_accuracy": Column(
        "mean over clients of probes of their own rows", "local_only.mean", "float64"
    ),
    "chance": Column("of a guess among all classes", "own.chance", "float64"),
    "uplink_bytes": Column(
        "sent by all clients in all rounds, by the shapes of messages",
        "training.uplink_bytes",
        "Int64",
    ),
    "downlink_bytes": Column(
        "received by all clients in all rounds", "training.downlink_bytes", "Int64"
    ),
    "parameters": Column("how many numbers one client trains", "training.parameters", "Int64"),
    "seconds": Column("wall time, training and judging", "own.seconds", "float64"),
    "train_seconds": Column("of the training", "training.seconds", "float64"),
    "judge_seconds": Column("of the judging", "judged.seconds", "float64"),
    "versions": Column("of Python and the packages that computed the cell", "training.versions"),
    "generator": Column(
        "SHA-256 of the tensors that the training left; missing where none were kept",
        "training.state",
    ),
}
"""The columns by name, in the order of a row; one more is one more entry."""
_SPREAD = ("params", "evaluation")
"""Mappings that are a column a key in a frame."""
WHERE = ("cell_id", "label", "dataset", "alpha", "clients", "epsilon_target", "seed")
"""What places a cell's rounds, clients and audits in the grid."""


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a cell, a column a column; what is missing is NaN among floats, ``<NA>`` among whole
    numbers, None elsewhere.
    """
    return _frame({name: [row.values.get(name) for row in rows] for name in COLUMNS})


def frame_of_lines(lines: Iterable[Line], rows: Sequence[Row]) -> pd.DataFrame:
    """Lines of cells, by ``cell_id``, with what places each cell in the grid before their own
    columns.
    """
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
    return pd.DataFrame(
        {name: pd.Series(held, dtype=_dtype(name, held)) for name, held in flat.items()}
    )


def _dtype(name: str, values: Sequence[Any]) -> str | None:
    """By the values, where they are numbers; None: pandas decides."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        if name in COLUMNS:
            return COLUMNS[name].dtype
        return "object"
    if kinds == {bool}:
        if None in values:
            return "boolean"
        return "bool"
    if kinds == {int} and max(abs(value) for value in values if value is not None) < 2**63:
        if None in values:
            return "Int64"
        return "int64"
    if kinds <= {int, float}:
        return "float64"
    if kinds == {str}:
        return None
    return "object"
