"""What is wrong with a run in known ways, in words: a table of what is looked for, and what helps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from fedsim.results.stats import FEWEST_SEEDS, PLACE, Settings, with_ends
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
LATE = 0.25
"""The last quarter of the rounds is what a run has come to."""
Found = Iterator[tuple[int, str]]
"""The settings that show something, by number, and what was seen, in numbers."""


@dataclass(frozen=True)
class Seen:
    """What is looked at.

    Attributes:
        settings: of a run.
        rounds: its :func:`fedsim.report.rounds.round_frame`.
        late: the mean of the last rounds, a line a cell; also the ``first_kl`` and the ``most_mmd`` of all its rounds.
    """

    settings: Settings
    rounds: pd.DataFrame
    late: pd.DataFrame

    @classmethod
    def of(cls, settings: Settings, rounds: pd.DataFrame) -> Seen:
        """Of a run."""
        late = rounds[rounds["left"] < LATE].groupby("cell_id").mean(numeric_only=True).astype({"setting": int})
        cells = rounds.groupby("cell_id")
        return cls(settings, rounds, late.assign(first_kl=cells["kl"].first(), most_mmd=cells["cross_client_mmd"].max()))

    def seeds(self, cells: pd.DataFrame) -> str:
        """How many of a setting's cells some are, in words."""
        every = self.settings.rows["setting"].eq(cells["setting"].iloc[0]).sum()
        return "" if every == 1 else f", in {f'all {every}' if len(cells) == every else f'{len(cells)} of {every}'} seeds"


def _falls(seen: Seen) -> Found:
    """Of every method and place the deepest fall from a smaller to a larger epsilon, over the seeds that both have."""
    facts = seen.settings.facts.dropna(subset="epsilon_target").sort_values("epsilon_target", kind="stable")
    scores = seen.settings.averaged.pivot(index="setting", columns="seed", values="balanced_accuracy")
    scores = scores.reindex(facts.index)
    pairs = []
    for nth, (_, curve) in enumerate(facts.groupby(["label", *PLACE], sort=False, dropna=False)):
        values = scores.loc[curve.index].to_numpy("float64")
        for before, after in combinations(range(len(curve)), 2):
            lost = values[before] - values[after]
            if len(lost := lost[~np.isnan(lost)]):
                std = lost.std(ddof=1) if len(lost) > 1 else math.nan
                pairs.append((nth, curve.index[before], curve.index[after], lost.mean(), std, lost.min(), lost.max(), len(lost)))
    stats = pd.DataFrame(pairs, columns=["curve", "before", "after", "mean", "std", "min", "max", "n"])
    few = (stats["n"] < FEWEST_SEEDS) & (stats["min"] > FALL_OF_FEW)
    ends = with_ends(stats, "ci95")
    fallen = ends[few | ((ends["n"] >= FEWEST_SEEDS) & (ends["mean"] > FALL + ends["half"].fillna(0.0)))]
    for _, curve in fallen.groupby("curve"):
        worst = curve.sort_values(["mean", "before", "after"]).iloc[-1]
        at = facts["epsilon_target"][worst["before"]]
        yield worst["after"], f"balanced accuracy is {worst['mean']:.2f} less than at ε = {number(at)}"


def _judges(seen: Seen) -> Found:
    rows = seen.settings.averaged.dropna(subset=["balanced_accuracy", "knn_balanced_accuracy"])
    apart = (rows["balanced_accuracy"] - rows["knn_balanced_accuracy"]).abs()
    for position, cells in _by_setting(rows.assign(apart=apart)[apart > JUDGES_APART]):
        worst = cells.sort_values("apart").iloc[-1]
        probe, neighbours = worst["balanced_accuracy"], worst["knn_balanced_accuracy"]
        yield position, f"{probe:.2f} by the probe, {neighbours:.2f} by neighbours{seen.seeds(cells)}"


def _seeds_apart(seen: Seen) -> Found:
    for position, cells in _by_setting(seen.settings.averaged.dropna(subset="balanced_accuracy")):
        scores = cells["balanced_accuracy"]
        if scores.max() - scores.min() > SEEDS_APART:
            yield position, f"balanced accuracy {', '.join(f'{score:.2f}' for score in scores)}"


def _sizes(seen: Seen) -> Found:
    rows = seen.settings.averaged
    for position, cells in _by_setting(rows[(rows["synthetic_norm"] < SIZES[0]) | (rows["synthetic_norm"] > SIZES[1])]):
        worst = max(cells["synthetic_norm"], key=lambda size: abs(math.log(max(size, 1e-9))))
        yield position, f"norm {_rounded(worst)}{seen.seeds(cells)}"


def _diverged(seen: Seen) -> Found:
    lost = seen.rounds[seen.rounds["lost"] != ""].drop_duplicates("cell_id")
    for position, cells in lost.groupby("setting"):
        first = cells.sort_values("round").iloc[0]
        yield int(str(position)), f"the loss ({first['lost']}) is not finite from round {first['round']} on{seen.seeds(cells)}"


def _compared(seen: Seen, *, noiseless: bool) -> Found:
    """Scores near chance where one without noise is not, or, where there is none, where the ceiling is not; not of what diverged."""
    names = {"balanced_accuracy": "score", "chance": "chance", "ceiling_balanced_accuracy": "ceiling"}
    lines = seen.settings.facts.join(seen.settings.averaged.groupby("setting")[[*names]].mean().rename(columns=names))
    place = [lines[name] for name in ("label", "dataset", "scheme", "alpha", "clients")]
    without = lines["score"].where(lines["epsilon_target"] == math.inf).groupby(place, dropna=False).transform("mean")
    best, low = without if noiseless else lines["ceiling"].where(without.isna()), lines["chance"]
    far = (best > low + LEAST_LEARNED * (1 - low)) & (lines["score"] < low + ACCURACY_SHARE * (best - low))
    far &= (lines["epsilon_target"] < math.inf) & ~lines.index.isin(seen.rounds[seen.rounds["lost"] != ""]["setting"])
    ratio = seen.late.groupby("setting")["noise_to_signal"].median().reindex(lines.index)
    for position, line in lines.assign(best=best, ratio=ratio)[far].iterrows():
        words = f"{line['best']:.2f} without noise" if noiseless else f"the ceiling is {line['best']:.2f}"
        noise = f"; the noise's norm is {_rounded(line['ratio'])} times the signal's" if 0 < line["ratio"] < math.inf else ""
        yield int(str(position)), f"balanced accuracy {line['score']:.2f}, {words} (chance {line['chance']:.2f}){noise}"


def _collapsed(seen: Seen) -> Found:
    for position, cells in _by_setting(seen.late.query("kl < @KL_COLLAPSED")):
        yield position, f"{_rounded(cells['kl'].median())} nats an example in the last quarter of the rounds{seen.seeds(cells)}"


def _exploded(seen: Seen) -> Found:
    lost = seen.rounds[seen.rounds["kl_lost"]].drop_duplicates("cell_id")
    for position, cells in _by_setting(lost):
        yield position, f"the KL is not finite from round {cells['round'].min()} on{seen.seeds(cells)}"
    grown = seen.late.query("kl > @KL_LARGE and kl > @KL_GROWTH * first_kl")
    for position, cells in _by_setting(grown[~grown.index.isin(lost["cell_id"])]):
        last = f"{_rounded(cells['kl'].median())} nats an example in the last quarter of the rounds"
        yield position, f"{last}, {_rounded(cells['first_kl'].median())} at first{seen.seeds(cells)}"


def _apart(seen: Seen) -> Found:
    for position, cells in _by_setting(seen.late.query("cross_client_mmd > @MMD_HIGH and cross_client_mmd >= @MMD_STAYED * most_mmd")):
        last = f"squared MMD {cells['cross_client_mmd'].median():.2f} in the last quarter of the rounds"
        yield position, f"{last}, at most {cells['most_mmd'].median():.2f}{seen.seeds(cells)}"


@dataclass(frozen=True)
class Kind:
    """A known failure.

    Attributes:
        name: what it is called.
        meaning: what it means.
        help: what usually helps.
        find: where it is seen.
    """

    name: str
    meaning: str
    help: str
    find: Callable[[Seen], Found]


KINDS = (
    Kind(
        "score falls as noise goes",
        "less noise cannot hurt a method, so the judge or the method's defaults do",
        "more synthetic rows (evaluation.per_class), a fixed probe_c, more seeds",
        _falls,
    ),
    Kind(
        "probe and nearest neighbours disagree",
        "one of them reads something that is not in real rows",
        "look at fidelity before either score is believed; more synthetic rows",
        _judges,
    ),
    Kind("seeds far apart", "a mean says little", "more seeds, and single seeds in place of their mean", _seeds_apart),
    Kind(
        "synthetic rows of another size than real ones",
        "directions alone carry what was learned; rows longer than 1 are brought back to the sphere before they are judged",
        "more rows or a larger ε; a smaller clip or radius, where the method has one",
        _sizes,
    ),
    Kind(
        "training diverged",
        "a loss is not finite, so nothing was learned from there on",
        "a smaller learning rate, a larger ε or fewer rounds (less noise a round), a smaller model",
        _diverged,
    ),
    Kind(
        "accuracy collapse under noise",
        "most of what the method learns without noise is lost with it",
        "a larger ε, more data; where there are rounds, fewer of them, fewer and larger batches, a smaller model",
        lambda seen: _compared(seen, noiseless=True),
    ),
    Kind(
        "accuracy far below the ceiling",
        "no score without noise stands beside it, so the noise may be the cause or not",
        "ε = .inf in the grid, to see whether it is the noise; if it is not, longer training or another model",
        lambda seen: _compared(seen, noiseless=False),
    ),
    Kind("KL collapse", "the decoder ignores z", "a lower beta, longer training", _collapsed),
    Kind(
        "KL explosion",
        "the posterior has left the prior that synthesis draws from",
        "a larger beta, a smaller learning rate, a larger ε or fewer rounds (less noise a round)",
        _exploded,
    ),
    Kind(
        "cross-client MMD stays high",
        "the clients' generators do not agree, so one neutral code stands for none of them",
        "synthesis: mixture or client; a larger lipschitz; a smaller code_scale",
        _apart,
    ),
)
"""The known failures; one more is one more entry."""


@dataclass(frozen=True)
class Finding:
    """A known failure that some settings show: where, in words that hold user text, and what was seen."""

    kind: Kind
    seen: Sequence[tuple[str, str]]

    @property
    def summary(self) -> str:
        """A line for a terminal: how often, where first, and what usually helps."""
        where, observed = self.seen[0]
        often = f" in {len(self.seen)} settings, such as" if len(self.seen) > 1 else ":"
        return f"{self.kind.name}{often} {where}: {observed}. {self.meaning}"

    @property
    def meaning(self) -> str:
        """What it means and what helps, as sentences."""
        return f"{self.kind.meaning[0].upper()}{self.kind.meaning[1:]}. What usually helps: {self.kind.help}"


def findings(settings: Settings, rounds: pd.DataFrame) -> list[Finding]:
    """The known failures that some settings and their rounds show, whatever the rows' status."""
    seen = Seen.of(settings, rounds)
    words = {position: _setting(line) for position, line in settings.facts.iterrows()}
    found = [(kind, [(words[position], observed) for position, observed in kind.find(seen)]) for kind in KINDS]
    return [Finding(kind, members) for kind, members in found if members]


def _by_setting(cells: pd.DataFrame) -> Iterable[tuple[int, pd.DataFrame]]:
    return ((int(str(position)), own) for position, own in cells.groupby("setting"))


def _setting(line: Any) -> str:
    held = {key: None if pd.isna(line[name]) else line[name] for key, name in _PARTS.items()}
    return setting(line["label"], line["dataset"], **held)


_PARTS = {"alpha": "alpha", "clients": "clients", "epsilon": "epsilon_target"}


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
