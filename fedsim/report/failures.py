"""Known failures of a training under noise, named in words when the rows and round records show them."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import fmean
from typing import Any

import pandas as pd

from fedsim.report.diagnostics import Rounds
from fedsim.results.groups import Group, Interval, grouped
from fedsim.results.rows import Row
from fedsim.words import number, setting

ACCURACY_SHARE = 0.25
"""Share of the way from chance to the score without noise: with less than that, noise has taken most of what was learned."""
LEAST_LEARNED = 0.1
"""Share of the way from chance to no error: where a score to compare with has come less far, there is nothing that noise could take."""
KL_COLLAPSED = 0.05
"""Nats an example: so little of x passes through z that the decoder does as well without it."""
KL_GROWTH, KL_LARGE = 10.0, 50.0
"""Times the first value, and nats: a useful posterior of a few dozen latents stays below both."""
MMD_HIGH, MMD_STAYED = 0.1, 0.5
"""A squared MMD, of a kernel with values up to 1; and a share of the run's own maximum: below it, the clients are coming together."""
FALL, FALL_OF_FEW = 0.02, 0.05
"""What a score loses as noise goes, beyond its interval; and in every seed, where there are too few for an interval."""
JUDGES_APART, SEEDS_APART = 0.15, 0.3
"""Between the probe and the nearest neighbours of one seed; between the best and the worst seed."""
SIZES = (0.67, 1.5)
"""Of synthetic rows as they are drawn, where real ones have norm 1."""
FEWEST_SEEDS = 3
"""Of a confidence interval."""
_LAST = 4
"""The last quarter of the rounds is what a run has come to."""

DIVERGED = "training diverged"
ACCURACY = "accuracy collapse under noise"
BELOW_CEILING = "accuracy far below the ceiling"
COLLAPSE = "KL collapse"
EXPLOSION = "KL explosion"
DISAGREEMENT = "cross-client MMD stays high"
FALLS = "score falls as noise goes"
JUDGES = "probe and nearest neighbours disagree"
SEEDS = "seeds far apart"
SIZE = "synthetic rows of another size than real ones"
HELP = {
    FALLS: "more synthetic rows (evaluation.per_class), a fixed probe_c, more seeds",
    JUDGES: "look at fidelity before either score is believed; more synthetic rows",
    SEEDS: "more seeds, and single seeds in place of their mean",
    SIZE: "more rows or a larger ε; a smaller clip or radius, where the method has one",
    DIVERGED: "a smaller learning rate, a larger ε or fewer rounds (less noise a round), a smaller model",
    ACCURACY: "a larger ε, more data; where there are rounds, fewer of them, fewer and larger batches, a smaller model",
    BELOW_CEILING: "ε = .inf in the grid, to see whether it is the noise; if it is not, longer training or another model",
    COLLAPSE: "a lower beta, a wider latent_share, longer training",
    EXPLOSION: "a larger beta, a smaller learning rate, a larger ε or fewer rounds (less noise a round)",
    DISAGREEMENT: "synthesis: mixture or client; a larger lipschitz; a smaller code_scale",
}
"""The kinds of failures, and what usually helps."""
MEANING = {
    FALLS: "less noise cannot hurt a method, so the judge or the method's defaults do",
    JUDGES: "one of them reads something that is not in real rows",
    SEEDS: "a mean says little",
    SIZE: "directions alone carry what was learned; rows longer than 1 are brought back to the sphere before they are judged",
    DIVERGED: "a loss is not finite, so nothing was learned from there on",
    ACCURACY: "most of what the method learns without noise is lost with it",
    BELOW_CEILING: "no score without noise stands beside it, so the noise may be the cause or not",
    COLLAPSE: "the decoder ignores z",
    EXPLOSION: "the posterior has left the prior that synthesis draws from",
    DISAGREEMENT: "the clients' generators do not agree, so one neutral code stands for none of them",
}
"""What a failure means."""


@dataclass(frozen=True)
class KnownFailure:
    """A failure that one setting (method, data set, alpha, clients, epsilon) shows, over all its seeds.

    Attributes:
        setting: the setting in words; holds user text.
        kind: a key of ``HELP``.
        observed: what was seen, in numbers.
    """

    setting: str
    kind: str
    observed: str


def find_failures(rows: Sequence[Row], rounds: Rounds) -> list[KnownFailure]:
    """The known failures that some rows and their rounds show, by kind in the order of ``HELP``, then by setting.

    Args:
        rows: the rows of the grid, whatever their status.
        rounds: of the same rows.
    """
    groups, records, frame = rounds.groups, rounds.records, rounds.frame
    late = frame[frame["position"] >= frame["rounds"] - (frame["rounds"] / _LAST).apply(math.ceil)]
    ok, lost = {row.cell_id for row in rows if row.status == "ok"}, _first_lost(records)
    cells, at_the_end = frame.groupby("cell_id"), late.groupby("cell_id")
    kl = pd.DataFrame({"group": cells["group"].first(), "first": cells["kl"].first(), "last": at_the_end["kl"].mean()}).dropna()
    mmd = pd.DataFrame(
        {"group": cells["group"].first(), "most": cells["cross_client_mmd"].max(), "last": at_the_end["cross_client_mmd"].mean()}
    ).dropna()
    return [
        *_falls(groups, ok),
        *_apart(groups, ok),
        *_diverged(groups, lost),
        *sorted(
            _accuracy(groups, ok, lost, late.groupby("group")["noise_to_signal"].median()),
            key=lambda failure: failure.kind == BELOW_CEILING,
        ),
        *_collapse(groups, kl),
        *_explosion(groups, kl, records),
        *_disagreement(groups, mmd),
    ]


def summary(findings: Sequence[KnownFailure]) -> list[str]:
    """A line for every kind that was seen, for a terminal: how often, where first, and what usually helps."""
    lines = []
    for kind, members in by_kind(findings).items():
        often = f" in {len(members)} settings, such as" if len(members) > 1 else ":"
        lines.append(f"{kind}{often} {members[0].setting}: {members[0].observed}. {_told(kind)}")
    return lines


def by_kind(findings: Iterable[KnownFailure]) -> dict[str, list[KnownFailure]]:
    """The findings by kind, in their order."""
    return grouped(findings, lambda finding: finding.kind)


def _told(kind: str) -> str:
    meaning = MEANING[kind]
    return f"{meaning[0].upper()}{meaning[1:]}. What usually helps: {HELP[kind]}"


def _falls(groups: Sequence[Group], ok: Container[str]) -> Iterator[KnownFailure]:
    """Of every method and place the deepest fall from a smaller to a larger epsilon, over the seeds that both have."""
    curves = grouped([group for group in groups if group.epsilon_target is not None], _place).values()
    for curve in curves:
        by_epsilon = sorted(curve, key=lambda group: group.epsilon_target or 0.0)
        scores = [
            {row.seed: row.balanced_accuracy for row in group.rows if row.cell_id in ok and row.balanced_accuracy is not None}
            for group in by_epsilon
        ]
        falls = [
            (fmean(lost), before, after)
            for before, after in combinations(range(len(scores)), 2)
            if _has_fallen(lost := [scores[before][seed] - scores[after][seed] for seed in scores[before] if seed in scores[after]])
        ]
        if falls:
            fall, before, after = max(falls)
            yield KnownFailure(
                _setting(by_epsilon[after]),
                FALLS,
                f"balanced accuracy is {fall:.2f} less than at ε = {number(by_epsilon[before].epsilon_target)}",
            )


def _has_fallen(lost: Sequence[float]) -> bool:
    if len(lost) < FEWEST_SEEDS:
        return bool(lost) and min(lost) > FALL_OF_FEW
    return fmean(lost) > FALL + (Interval.of(lost).half_width or 0.0)


def _apart(groups: Sequence[Group], ok: Container[str]) -> Iterator[KnownFailure]:
    """What single seeds show: two judges that disagree, seeds that do, rows of another size."""
    for group in groups:
        rows = [row for row in group.rows if row.cell_id in ok and row.balanced_accuracy is not None]
        scores = [row.scores["balanced_accuracy"] for row in rows]
        nearest = [
            (row.scores["balanced_accuracy"], row.scores["knn_balanced_accuracy"]) for row in rows if "knn_balanced_accuracy" in row.scores
        ]
        if apart := [pair for pair in nearest if abs(pair[0] - pair[1]) > JUDGES_APART]:
            probe, neighbours = max(apart, key=lambda pair: abs(pair[0] - pair[1]))
            yield KnownFailure(
                _setting(group), JUDGES, f"{probe:.2f} by the probe, {neighbours:.2f} by neighbours{_seeds(len(apart), len(rows))}"
            )
        if scores and max(scores) - min(scores) > SEEDS_APART:
            yield KnownFailure(_setting(group), SEEDS, f"balanced accuracy {', '.join(f'{score:.2f}' for score in scores)}")
        sizes = [row.scores["synthetic_norm"] for row in rows if "synthetic_norm" in row.scores]
        if others := [size for size in sizes if not SIZES[0] <= size <= SIZES[1]]:
            worst = max(others, key=lambda size: abs(math.log(max(size, 1e-9))))
            yield KnownFailure(_setting(group), SIZE, f"norm {_rounded(worst)}{_seeds(len(others), len(rows))}")


def _accuracy(groups: Sequence[Group], ok: set[str], lost: Container[str], noise: pd.Series[float]) -> Iterator[KnownFailure]:
    """Scores near chance where one without noise is not, or, where there is none, where the ceiling is not; not of what diverged."""
    scores = {position: fmean(values) for position, group in enumerate(groups) if (values := _scores(group, ok))}
    noiseless = {_place(groups[position]): score for position, score in scores.items() if groups[position].epsilon_target == math.inf}
    for position, score in scores.items():
        group = groups[position]
        if group.epsilon_target is None or math.isinf(group.epsilon_target) or any(row.cell_id in lost for row in group.rows):
            continue
        chance, ceiling, best = group.mean("chance"), group.mean("ceiling_balanced_accuracy"), noiseless.get(_place(group))
        kind, words = (BELOW_CEILING, "the ceiling is {}") if best is None else (ACCURACY, "{} without noise")
        best = ceiling if best is None else best
        if chance is None or best is None or not _far_below(score, best, chance):
            continue
        ratio = noise.get(position, math.nan)
        observed = f"balanced accuracy {score:.2f}, {words.format(f'{best:.2f}')} (chance {chance:.2f})"
        # where clients noise their own steps, none is added to what they send
        observed += f"; the noise's norm is {_rounded(ratio)} times the signal's" if 0 < ratio < math.inf else ""
        yield KnownFailure(_setting(group), kind, observed)


def _far_below(score: float, best: float, chance: float) -> bool:
    """Whether a score has little of what lies between chance and the best, and that is something."""
    return best > chance + LEAST_LEARNED * (1 - chance) and score < chance + ACCURACY_SHARE * (best - chance)


def _scores(group: Group, ok: set[str]) -> list[float]:
    return [row.balanced_accuracy for row in group.rows if row.cell_id in ok and row.balanced_accuracy is not None]


def _setting(group: Group) -> str:
    return setting(group.label, group.dataset, alpha=group.alpha, clients=group.clients, epsilon=group.epsilon_target)


def _place(group: Group) -> tuple[object, ...]:
    return group.label, group.dataset, group.scheme, group.alpha, group.clients


def _first_lost(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """The round from which on a cell has a loss that is not finite, and which losses."""
    first: dict[str, tuple[int, str]] = {}
    for record in records:
        lost = [name for name in _losses(tuple(record)) if _lost(record[name])]
        if lost and record["cell_id"] not in first:
            words = " and ".join(name.removeprefix("loss_").replace("_", " ") for name in lost)
            first[record["cell_id"]] = record["round"], words
    return first


def _diverged(groups: Sequence[Group], first: Mapping[str, tuple[int, str]]) -> Iterator[KnownFailure]:
    for group in groups:
        if cells := [first[row.cell_id] for row in group.rows if row.cell_id in first]:
            round_, words = min(cells)
            observed = f"the loss ({words}) is not finite from round {round_} on"
            yield KnownFailure(_setting(group), DIVERGED, f"{observed}{_seeds(len(cells), len(group.rows))}")


@lru_cache(maxsize=1024)
def _losses(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.startswith("loss_"))


def _collapse(groups: Sequence[Group], kl: pd.DataFrame) -> Iterator[KnownFailure]:
    of = kl.groupby("group").size()
    for position, cells in _by_setting(kl[kl["last"] < KL_COLLAPSED]).items():
        observed = f"{_rounded(cells['last'].median())} nats an example in the last quarter of the rounds{_seeds(len(cells), of[position])}"
        yield KnownFailure(_setting(groups[position]), COLLAPSE, observed)


def _explosion(groups: Sequence[Group], kl: pd.DataFrame, records: Iterable[Mapping[str, Any]]) -> Iterator[KnownFailure]:
    lost = {record["cell_id"] for record in records if _lost(record.get("kl"))}
    large = kl[(kl["last"] > KL_LARGE) & (kl["last"] > KL_GROWTH * kl["first"])].drop(index=list(lost), errors="ignore")
    exploded = _by_setting(large)
    for position, group in enumerate(groups):
        if count := sum(row.cell_id in lost for row in group.rows):
            yield KnownFailure(_setting(group), EXPLOSION, f"the KL is not finite{_seeds(count, len(group.rows))}")
        elif (cells := exploded.get(position)) is not None:
            first, last = cells[["first", "last"]].median()
            observed = f"{_rounded(last)} nats an example in the last quarter of the rounds, {_rounded(first)} at first"
            yield KnownFailure(_setting(group), EXPLOSION, f"{observed}{_seeds(len(cells), len(group.rows))}")


def _disagreement(groups: Sequence[Group], mmd: pd.DataFrame) -> Iterator[KnownFailure]:
    of = mmd.groupby("group").size()
    for position, cells in _by_setting(mmd[(mmd["last"] > MMD_HIGH) & (mmd["last"] >= MMD_STAYED * mmd["most"])]).items():
        most, last = cells[["most", "last"]].median()
        observed = f"squared MMD {last:.2f} in the last quarter of the rounds, at most {most:.2f}{_seeds(len(cells), of[position])}"
        yield KnownFailure(_setting(groups[position]), DISAGREEMENT, observed)


def _by_setting(cells: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The lines of some cells by the position of their group, ascending."""
    groups: Any = cells.groupby("group")
    return dict(iter(groups))


def _seeds(count: int, of: int) -> str:
    if of == 1:
        return ""
    return f", in all {of} seeds" if count == of else f", in {count} of {of} seeds"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _lost(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
