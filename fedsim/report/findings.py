"""What is wrong with a run in known ways, in words: a table of what is looked for, and what
helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from fedsim.report.tables import setting_words
from fedsim.results.stats import PLACE, SeedGroups

LATE = 0.25
"""The last quarter of the rounds is what a run has come to."""


class Kind(NamedTuple):
    """A known failure: its name, which settings show it as pandas' ``query`` has it, by the columns
    of :func:`seen`, and what is said.
    """

    name: str
    where: str
    observed: str
    meaning: str


KINDS = (
    Kind(
        "score falls as noise goes",
        "before > highest + 0.02",
        "balanced accuracy is {highest:.2f} at best, and at least {before:.2f} at a smaller ε",
        "Less noise cannot hurt a method, so the judge or the method's defaults do. "
        "What usually helps: more synthetic rows (evaluation.per_class), a fixed probe_c, "
        "more seeds",
    ),
    Kind(
        "probe and nearest neighbours disagree",
        "apart > 0.15",
        "{probe:.2f} by the probe, {neighbours:.2f} by neighbours in the seed where they are "
        "farthest apart",
        "One of them reads something that is not in real rows. "
        "What usually helps: look at fidelity before either score is believed; more synthetic rows",
    ),
    Kind(
        "seeds far apart",
        "highest > lowest + 0.3",
        "balanced accuracy {each}",
        "A mean says little. What usually helps: more seeds, and single seeds in place of "
        "their mean",
    ),
    Kind(
        "synthetic rows of another size than real ones",
        "norm < 0.67 or norm > 1.5",
        "norm {norm:.2g}",
        "Directions alone carry what was learned; rows longer than 1.2 are shortened to it "
        "before they are judged. "
        "What usually helps: more rows or a larger ε; a smaller clip or radius, where the "
        "method has one",
    ),
    Kind(
        "training diverged",
        "lost_from >= 0",
        "the loss ({lost}) is not finite from round {lost_from:.0f} on",
        "Nothing was learned from there on. "
        "What usually helps: a smaller learning rate, a larger ε or fewer rounds (less noise "
        "a round), a smaller model",
    ),
    # a quarter of the way from chance to the other score, where that is a tenth of the way to no
    # error or more
    Kind(
        "accuracy collapse under noise",
        "noisy and noiseless > chance + 0.1 * (1 - chance) and score < chance + 0.25 * "
        "(noiseless - chance)",
        "balanced accuracy {score:.2f}, {noiseless:.2f} without noise (chance {chance:.2f}){noise}",
        "Most of what the method learns without noise is lost with it. "
        "What usually helps: a larger ε, more data; where there are rounds, fewer of them, "
        "fewer and larger batches, a smaller model",
    ),
    Kind(
        "accuracy far below the ceiling",
        "noisy and noiseless != noiseless and ceiling > chance + 0.1 * (1 - chance) and "
        "score < chance + 0.25 * (ceiling - chance)",
        "balanced accuracy {score:.2f}, the ceiling is {ceiling:.2f} (chance {chance:.2f}){noise}",
        "No score without noise stands beside it. "
        "What usually helps: ε = .inf in the grid, to see whether it is the noise; if not, "
        "longer training or another model",
    ),
    Kind(
        "KL collapse",
        "least_kl < 0.05",
        "{least_kl:.2g} nats an example in the last quarter of the rounds",
        "The decoder ignores z. What usually helps: a lower beta, longer training",
    ),
    Kind(
        "KL explosion",
        "most_kl > 50 and not most_kl <= 10 * first_kl",
        "{most_kl:.3g} nats an example in the last quarter of the rounds, {first_kl:.2g} at first",
        "The posterior has left the prior. What usually helps: a larger beta, a smaller "
        "learning rate, a larger ε or fewer rounds",
    ),
    Kind(
        "cross-client MMD stays high",
        "mmd > 0.1 and mmd >= 0.5 * most_mmd",
        "squared MMD {mmd:.2f} in the last quarter of the rounds, at most {most_mmd:.2f}",
        "The clients' generators disagree. What usually helps: fedhypevae-sites; less so, "
        "synthesis: client or mixture",
    ),
)
"""The known failures; one more is one more entry."""


@dataclass(frozen=True)
class Finding:
    """A known failure that some settings show: where, in words that hold user text, and what was
    seen.
    """

    kind: Kind
    seen: Sequence[tuple[str, str]]

    @property
    def summary(self) -> str:
        """A line for a terminal: how often, where first, and what usually helps."""
        where, observed = self.seen[0]
        if len(self.seen) > 1:
            often = f" in {len(self.seen)} settings, such as"
        else:
            often = ":"
        return f"{self.kind.name}{often} {where}: {observed}. {self.kind.meaning}"


def seen(settings: SeedGroups, rounds: pd.DataFrame) -> pd.DataFrame:
    """What the failures are told by, a line a setting.

    Scores are of rows that are ok: their mean, ``each`` seed, the ``lowest`` and ``highest``,
    ``before`` (the best lowest seed of a smaller epsilon), ``noiseless`` (of the same method and
    place), and of the seed in which probe and neighbours are farthest ``apart`` both. Of rounds,
    the means over a cell's last ones, of seeds the extreme; ``lost``: a loss that is not finite.
    """
    scores = settings.averaged.groupby("setting")
    facts = settings.facts
    most = scores["synthetic_norm"].max()
    least = scores["synthetic_norm"].min()  # the one that is farther from 1 is told
    frame = facts.assign(
        score=scores["balanced_accuracy"].mean(),
        each=scores["balanced_accuracy"].agg(lambda own: ", ".join(map("{:.2f}".format, own))),
        lowest=scores["balanced_accuracy"].min(),
        highest=scores["balanced_accuracy"].max(),
        chance=scores["chance"].mean(),
        ceiling=scores["ceiling_balanced_accuracy"].mean(),
        norm=most.where(most * least > 1, least),
    ).sort_values("epsilon_target", kind="stable")
    judged = settings.averaged.rename(
        columns={"balanced_accuracy": "probe", "knn_balanced_accuracy": "neighbours"}
    )
    judged = judged.assign(apart=(judged["probe"] - judged["neighbours"]).abs()).sort_values(
        "apart", na_position="first"
    )
    frame = frame.join(
        judged.drop_duplicates("setting", keep="last").set_index("setting")[
            ["apart", "probe", "neighbours"]
        ]
    )
    curve = ["label", *PLACE]
    frame["before"] = (
        frame.dropna(subset="epsilon_target")
        .groupby(curve, dropna=False)["lowest"]
        .transform(lambda own: own.cummax().shift())
    )
    best = frame["score"].where(frame["epsilon_target"] == math.inf)
    frame["noiseless"] = best.groupby([frame[name] for name in curve], dropna=False).transform(
        "mean"
    )
    cells = rounds.groupby("cell_id")
    late = rounds[rounds["left"] < LATE].groupby("cell_id").mean(numeric_only=True)
    kl = late["kl"].mask(cells["kl_lost"].any(), math.inf).groupby(late["setting"])
    first = (
        rounds["kl"]
        .where(rounds["kl"].abs() < math.inf)
        .groupby(rounds["cell_id"])
        .first()
        .groupby(late["setting"])
    )
    frame = frame.assign(least_kl=kl.min(), most_kl=kl.max(), first_kl=first.median())
    mmd = late.assign(most=cells["cross_client_mmd"].max()).groupby("setting")
    frame = frame.assign(mmd=mmd["cross_client_mmd"].median(), most_mmd=mmd["most"].median())
    lost = rounds[rounds["lost"] != ""].sort_values("round").groupby("setting")
    frame = frame.assign(lost=lost["lost"].first(), lost_from=lost["round"].first())
    frame["noisy"] = (frame["epsilon_target"] < math.inf) & frame["lost"].isna()
    ratio = late.groupby("setting")["noise_to_signal"].median().reindex(frame.index)
    words = ratio.map("; the noise's norm is {:.3g} times the signal's".format)
    return frame.assign(noise=words.where((ratio > 0) & (ratio < math.inf), "")).loc[facts.index]


def findings(settings: SeedGroups, rounds: pd.DataFrame) -> list[Finding]:
    """The known failures that some settings and their rounds
    (:func:`fedsim.report.rounds.round_frame`) show, whatever the rows' status.
    """
    lines = seen(settings, rounds)
    found = []
    for kind in KINDS:
        members: list[dict[Any, Any]] = lines.query(kind.where, engine="python").to_dict("records")
        said = [
            (
                setting_words(line, ["label", *PLACE[:1], *PLACE[2:], "epsilon_target"]),
                kind.observed.format(**line),
            )
            for line in members
        ]
        if said:
            found += [Finding(kind, said)]
    return found
