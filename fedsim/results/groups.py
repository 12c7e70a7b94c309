"""Rows that differ in their seed alone, as means with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, TypeVar, get_args

from scipy.special import stdtrit

from fedsim.json_lines import dump
from fedsim.privacy.plan import Claim
from fedsim.results.rows import Row

EQUAL = 1e-12
"""Numbers that differ by less are the same but for rounding."""


Spread = Literal["ci95", "sd", "range"]
"""How a score varies over seeds: Student-t 95 % confidence interval of the mean, standard deviation, or least and most."""
_FEWEST = 3
"""Seeds of a confidence interval that is shown: one of two is 12.7 times as wide as they are apart."""
_Key = TypeVar("_Key")
_Thing = TypeVar("_Thing")


def grouped(things: Iterable[_Thing], key: Callable[[_Thing], _Key]) -> dict[_Key, list[_Thing]]:
    """The things of every key; keys as they first appear, things in their order."""
    groups: dict[_Key, list[_Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half-width of its Student-t 95 % confidence interval.

    Attributes:
        mean: over ``count`` seeds.
        half_width: None for a single seed, and for equal values: they say that seeds change nothing, not that nothing is uncertain.
        count: how many seeds have a value.
        ends: what is shown beside the mean; None where the half-width is, and where a confidence interval has fewer than three seeds.
    """

    mean: float
    half_width: float | None
    count: int
    ends: tuple[float, float] | None = None

    @property
    def beside(self) -> float | None:
        """What stands behind ± beside the mean: half of what lies between the ends."""
        return None if self.ends is None else (self.ends[1] - self.ends[0]) / 2

    @classmethod
    def of(cls, values: Sequence[float], spread: Spread = "ci95") -> Interval:
        """The interval of at least one value: ``t_{0.975, n-1} * s / sqrt(n)`` around the mean, and the ends of a ``spread``."""
        n = len(values)
        mean, least, most = fmean(values), min(values), max(values)
        if most - least < EQUAL:
            return cls(mean, None, n)
        deviation = math.dist(values, [mean] * n) / math.sqrt(n - 1)
        half_width = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
        if spread == "ci95" and n < _FEWEST:
            return cls(mean, half_width, n)
        reach = deviation if spread == "sd" else half_width
        return cls(mean, half_width, n, (least, most) if spread == "range" else (mean - reach, mean + reach))


@dataclass(frozen=True)
class Group:
    """Rows that differ in their seed only, with status ok; and how many others of the group there are, by status.

    ``rows`` may be empty. Rows of different parameters are never in one group, even under one label.
    """

    dataset: str
    scheme: str | None
    algorithm: str
    label: str
    alpha: float | None
    clients: int | None
    epsilon_target: float | None
    delta: float | None
    unit: str | None
    trust: str | None
    scope: str | None
    claim: str | None
    params: Mapping[str, Any]
    yields: str | None
    rows: tuple[Row, ...]
    failed: int
    overspent: int
    unaccounted: int
    refuted: int
    spread: Spread = "ci95"
    public: str | None = None
    """The public rows that its method used."""

    @property
    def classifies(self) -> bool:
        """Whether its method yields a classifier, and no generator."""
        return self.yields == "classifier"

    def interval(self, measure: str) -> Interval | None:
        """Mean and confidence interval of a row's field over the seeds; None where no row has it."""
        values = self._values(measure)
        return Interval.of(values, self.spread) if values else None

    @property
    def place(self) -> tuple[object, ...]:
        """What methods are compared at: data set, scheme, alpha and clients."""
        return self.dataset, self.scheme, self.alpha, self.clients

    @property
    def client_megabytes(self) -> float | None:
        """What a client sends and receives in a training, the mean over seeds; None where it was not counted."""
        sent, received = self.mean("uplink_bytes"), self.mean("downlink_bytes")
        return None if sent is None or received is None or not self.clients else (sent + received) / self.clients / 1e6

    def mean(self, measure: str) -> float | None:
        """Mean of a row's field over the seeds; None where no row has it."""
        values = self._values(measure)
        return fmean(values) if values else None

    def largest(self, measure: str) -> float | None:
        """Largest value of a row's field over the seeds; None where no row has it."""
        return max(self._values(measure), default=None)

    def values_by_seed(self, measures: Sequence[str]) -> list[tuple[int | None, *tuple[float | None, ...]]]:
        """Every seed with its values of some fields."""
        return [(row.seed, *map(row.value, measures)) for row in self.rows]

    def _values(self, measure: str) -> list[float]:
        return [value for row in self.rows if (value := row.value(measure)) is not None]


SETTING = ("dataset", "scheme", "algorithm", "label", "alpha", "clients", "epsilon_target", "delta", "unit", "trust")


def group_seeds(rows: Iterable[Row], spread: Spread = "ci95") -> list[Group]:
    """The rows as groups over seeds, by data set, alpha, clients, label, epsilon; data sets and labels as they first appear.

    A label that stands for several parameter sets gets the differing parameters appended, so that no two groups of
    different parameters share a name.

    Args:
        rows: in any order.
        spread: what stands beside their means.
    """
    rows = list(rows)
    params = [dump(row.given_params) for row in rows]
    rows = distinct_labels(rows, params)
    order = {name: position for position, name in enumerate(dict.fromkeys(name for row in rows for name in (row.dataset, row.label)))}

    def place(pair: tuple[Row, str]) -> tuple[Any, ...]:
        row, spelled = pair
        return (*(getattr(row, name) for name in SETTING), row.dataset_hash, row.public_hash, spelled, dump(row.evaluation))

    return sorted(
        (_group([row for row, _ in pairs], spread) for pairs in grouped(zip(rows, params, strict=True), place).values()),
        key=lambda g: (
            order[g.dataset],
            _last(g.alpha),
            g.clients or 0,
            g.scheme or "",
            order[g.label],
            _last(g.epsilon_target),
        ),
    )


def _group(members: list[Row], spread: Spread) -> Group:
    # A seed counts once; a later row of the same seed is the newer result.
    averaged = {row.seed: row for row in members if row.status == "ok"}
    scopes = dict.fromkeys(row.scope for row in members if row.scope is not None)
    claims = {row.drawn_claim for row in members if row.claim is not None}
    statuses = Counter(row.status for row in members)
    return Group(
        **{name: getattr(members[0], name) for name in SETTING},
        scope=" and ".join(scopes) or None,
        # A mean is as well founded as the weakest of its rows.
        claim=weakest(claims),
        params=members[0].given_params,
        yields=members[0].yields,
        rows=tuple(sorted(averaged.values(), key=lambda row: _last(row.seed))),
        failed=statuses["failed"],
        overspent=statuses["overspent"],
        unaccounted=statuses["unaccounted"],
        refuted=statuses["refuted"],
        spread=spread,
        public=members[0].public,
    )


def weakest(claims: Collection[str | None]) -> str | None:
    """The weakest of some claims; None where there is none."""
    return next((claim for claim in reversed(get_args(Claim)) if claim in claims), None)


def distinct_labels(rows: list[Row], params: list[str]) -> list[Row]:
    """The rows, whose parameters are ``params`` as text, with what differs between settings that share a label appended to it."""
    by_label: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for row, spelled in zip(rows, params, strict=True):
        key = (row.algorithm, row.delta, row.unit, row.trust, row.public, spelled)
        known = by_label.setdefault(row.label, {})
        if key not in known:
            known[key] = _settings(row)
    differing = {label: _differing(list(known.values())) for label, known in by_label.items()}

    def named(row: Row) -> Row:
        differences = ", ".join(f"{name}={_settings(row).get(name)}" for name in differing[row.label])
        return row.model_copy(update={"label": f"{row.label} ({differences})"}) if differences else row

    return [named(row) for row in rows]


def _settings(row: Row) -> dict[str, Any]:
    return {"algorithm": row.algorithm, "delta": row.delta, "unit": row.unit, "trust": row.trust, "public": row.public, **row.given_params}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    values: dict[str, set[str]] = {}
    for name, value in (item for setting in settings for item in setting.items()):
        spelled = values.setdefault(name, set())
        if value is not None or name not in SETTING:  # without a budget there is no delta, unit or trust
            spelled.add(dump([value]))
    return [name for name, spelled in values.items() if len(spelled) > 1]


def _last(value: float | None) -> float:
    """A sort key that puts a missing number behind all others, infinity included."""
    return math.inf if value is None else min(value, 1e300)
