"""The known failures of a run: which settings show one, and what usually helps.

:data:`KINDS` is a table of failures, each with a condition on the columns of :func:`seen`.
:func:`findings` returns those that a run shows. They are printed at the end of a bench and stand at
the top of the report page.
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
"""The share of the rounds, the last ones, whose means say what a training has come to."""


class Kind(NamedTuple):
    """A known failure.

    Attributes:
        name: Its name, the heading in the page.
        where: The condition on a setting, in the syntax of pandas' ``query``, on the columns of
            :func:`seen`.
        observed: What was observed, a format string over the same columns.
        meaning: What that means, and what usually helps.
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
        "Less noise cannot hurt a method, so the evaluation or the method's defaults do. "
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
        "before they are evaluated. "
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
    # The score is below a quarter of the way from chance to the score without noise. That is only
    # told where the latter is at least a tenth of the way from chance to no error.
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
"""The known failures. To add one, add an entry, and to :func:`seen` the columns that it needs."""


@dataclass(frozen=True)
class Finding:
    """A known failure that some settings show.

    Attributes:
        kind: The failure.
        seen: For each setting that shows it, the setting in words and what was observed. Both may
            hold text of the user, so they are escaped when they are written.
    """

    kind: Kind
    seen: Sequence[tuple[str, str]]

    @property
    def summary(self) -> str:
        """The line for a terminal: how many settings, the first of them, and what usually helps."""
        where, observed = self.seen[0]
        often = ":"
        if len(self.seen) > 1:
            often = f" in {len(self.seen)} settings, such as"
        return f"{self.kind.name}{often} {where}: {observed}. {self.kind.meaning}"


def seen(settings: SeedGroups, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return one line per setting with all columns that :data:`KINDS` uses.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`fedsim.report.rounds.round_frame`.

    Returns:
        :attr:`SeedGroups.facts` with the columns of :func:`_score_columns`, of
        :func:`_disagreement` and of :func:`_round_columns`, and ``noisy``: whether noise was added
        and all losses are finite.
    """
    frame = settings.facts.join(_score_columns(settings)).join(_disagreement(settings.averaged))
    frame = frame.join(_round_columns(rounds))
    frame["noise"] = frame["noise"].astype("object").fillna("")
    frame["noisy"] = (frame["epsilon_target"] < math.inf) & frame["lost"].isna()
    return frame


def _score_columns(settings: SeedGroups) -> pd.DataFrame:
    """Return, by setting, what balanced accuracies and norms say.

    Returns:
        ``score`` (mean), ``each`` (the scores of all seeds, in words), ``lowest`` and ``highest``
        seed, ``chance`` and ``ceiling`` (means), ``norm`` (that of the seed farthest from 1),
        ``before`` (the best lowest seed at a smaller epsilon) and ``noiseless`` (the mean score
        without noise), the last two of the same method and place.
    """
    by_setting = settings.averaged.groupby("setting")
    scores = by_setting["balanced_accuracy"]
    longest = by_setting["synthetic_norm"].max()
    shortest = by_setting["synthetic_norm"].min()
    frame = settings.facts.assign(
        score=scores.mean(),
        each=scores.agg(lambda seeds: ", ".join(map("{:.2f}".format, seeds))),
        lowest=scores.min(),
        highest=scores.max(),
        chance=by_setting["chance"].mean(),
        ceiling=by_setting["ceiling_balanced_accuracy"].mean(),
        norm=longest.where(longest * shortest > 1, shortest),
    )
    frame = frame.sort_values("epsilon_target", kind="stable")
    curve = ["label", *PLACE]
    private = frame.dropna(subset="epsilon_target").groupby(curve, dropna=False)
    frame["before"] = private["lowest"].transform(lambda lowest: lowest.cummax().shift())
    frame["noiseless"] = frame["score"].where(frame["epsilon_target"] == math.inf)
    frame["noiseless"] = frame.groupby(curve, dropna=False)["noiseless"].transform("mean")
    return frame.drop(columns=settings.facts.columns)


def _disagreement(cells: pd.DataFrame) -> pd.DataFrame:
    """Return, by setting, the seed in which probe and nearest neighbours disagree most.

    Returns:
        ``probe`` and ``neighbours`` (the balanced accuracies of both in that seed) and ``apart``
        (their distance).
    """
    names = {"balanced_accuracy": "probe", "knn_balanced_accuracy": "neighbours"}
    scores = cells.rename(columns=names).set_index("setting")
    scores["apart"] = (scores["probe"] - scores["neighbours"]).abs()
    scores = scores.sort_values("apart", na_position="first")
    last = ~scores.index.duplicated(keep="last")
    return scores.loc[last, ["apart", "probe", "neighbours"]]


def _round_columns(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return, by setting, what the rounds of its cells say.

    Means over the last rounds (:data:`LATE`) of a cell are taken first, then the extreme or the
    median over cells.

    Returns:
        ``least_kl``, ``most_kl`` and ``first_kl`` (KL in nats per example; infinite if it was not
        finite), ``mmd`` and ``most_mmd`` (squared MMD between clients), ``lost`` and ``lost_from``
        (which loss is not finite, and from which round on), and ``noise`` (the noise-to-signal
        ratio in words, or empty).
    """
    cells = rounds.groupby("cell_id")
    late = rounds[rounds["left"] < LATE].groupby("cell_id").mean(numeric_only=True)
    by_setting = late.groupby("setting")
    kl = late["kl"].mask(cells["kl_lost"].any(), math.inf).groupby(late["setting"])
    finite_kl = rounds["kl"].where(rounds["kl"].abs() < math.inf)
    first_kl = finite_kl.groupby(rounds["cell_id"]).first().groupby(late["setting"])
    most_mmd = cells["cross_client_mmd"].max().groupby(late["setting"])
    lost = rounds[rounds["lost"] != ""].sort_values("round").groupby("setting")
    ratio = by_setting["noise_to_signal"].median()
    words = ratio.map("; the noise's norm is {:.3g} times the signal's".format)
    columns = {
        "least_kl": kl.min(),
        "most_kl": kl.max(),
        "first_kl": first_kl.median(),
        "mmd": by_setting["cross_client_mmd"].median(),
        "most_mmd": most_mmd.median(),
        "lost": lost["lost"].first(),
        "lost_from": lost["round"].first(),
        "noise": words.where((ratio > 0) & (ratio < math.inf), ""),
    }
    return pd.DataFrame(columns)


def findings(settings: SeedGroups, rounds: pd.DataFrame) -> list[Finding]:
    """Return the known failures that some settings show, whatever the status of their cells.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`fedsim.report.rounds.round_frame`.
    """
    lines = seen(settings, rounds)
    columns = ["label", "dataset", "alpha", "clients", "epsilon_target"]
    shown = []
    for kind in KINDS:
        members: list[dict[Any, Any]] = lines.query(kind.where, engine="python").to_dict("records")
        if members:
            observed = [
                (setting_words(line, columns), kind.observed.format(**line)) for line in members
            ]
            shown.append(Finding(kind, observed))
    return shown
