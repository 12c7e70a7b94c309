"""Finds known failures in a run, such as a loss that is not finite.

For each failure it says which settings show it, what it means, and what usually helps. A setting is
a method on a data set and partition with a budget; it has a cell for each seed. The thresholds are
ours.

:data:`KINDS` is a table of failures, each with a condition on the columns of :func:`seen`.
:func:`findings` returns those that a run shows. They are printed at the end of a bench, and the
report page lists them under "Before you believe these numbers".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from fedsim.report.names import epsilon_head, setting_words
from fedsim.results.stats import PLACE, SeedGroups

LATE = 0.25
"""The share of the rounds that count as the last; means over them describe the end."""
ROUND_NUMBERS = {
    "kl": "KL, nats per example",
    "gradient_norm_50": "norm before clipping",
    "clipped_fraction": "clipped fraction",
    "noise_to_signal": "noise norm / signal norm",
    "generated_decoder_norm": "generated norm, decoder",
    "generated_prior_norm": "generated norm, prior",
    "cross_client_mmd": "MMD² between clients",
}
"""The numbers of a round that are read beside every loss, with their names in words."""


class Kind(NamedTuple):
    """A known failure.

    Attributes:
        name: What is wrong, in a few words.
        where: The condition on a setting, in the syntax of pandas' ``query``, on the columns of
            :func:`seen`.
        observed: What is shown of each setting: heads, each with a format string over the same
            columns.
        meaning: What that means.
        helps: What usually helps.
    """

    name: str
    where: str
    observed: Mapping[str, str]
    meaning: str
    helps: str


_SCORE = {"balanced accuracy": "{score:.2f}"}
_AT_THE_END = "{} in the last quarter of the rounds"
_KL = _AT_THE_END.format("KL (nats per example)")
KINDS = (
    Kind(
        "A loss is not finite",
        "lost_from >= 0",
        {"loss": "{lost}", "not finite from round": "{lost_from:.0f}"},
        "Training diverged. The method learned nothing from that round on.",
        "a smaller learning rate, a larger ε or fewer rounds (less noise in each round), a smaller "
        "model",
    ),
    # "not … <=" also holds if no KL was finite.
    Kind(
        "The KL term is very large",
        "most_kl > 50 and not most_kl <= 10 * first_kl",
        {_KL: "{most_kl:.3g}", "in the first round": "{first_kl:.2g}"},
        "The posterior has moved far away from the prior, from which the generator draws.",
        "a larger beta, a smaller learning rate, a larger ε or fewer rounds",
    ),
    # The score is below a quarter of the way from chance to the score without noise. This counts
    # only if the score without noise is at least a tenth of the way from chance to no error.
    Kind(
        "Noise destroys most of the accuracy",
        "noisy and noiseless > chance + 0.1 * (1 - chance) and score < chance + 0.25 * "
        "(noiseless - chance)",
        {
            **_SCORE,
            "without noise": "{noiseless:.2f}",
            "chance": "{chance:.2f}",
            "noise norm / signal norm": "{noise}",
        },
        "The method learns much more without noise.",
        "a larger ε, more data; in a method with rounds: fewer of them, fewer and larger batches, "
        "a smaller model",
    ),
    # A number that differs from itself is missing.
    Kind(
        "The accuracy is far below the ceiling",
        "noisy and noiseless != noiseless and ceiling > chance + 0.1 * (1 - chance) and "
        "score < chance + 0.25 * (ceiling - chance)",
        {
            **_SCORE,
            "ceiling": "{ceiling:.2f}",
            "chance": "{chance:.2f}",
            "noise norm / signal norm": "{noise}",
        },
        "The run has no result without noise, so the cause is not known.",
        "add .inf to epsilon in the grid, to see whether noise is the cause; if it is not, train "
        "longer or use another model",
    ),
    Kind(
        "The accuracy falls when there is less noise",
        "before > highest + 0.02",
        {
            "balanced accuracy of the best seed": "{highest:.2f}",
            "of the worst seed at a smaller ε": "{before:.2f}",
        },
        "Less noise cannot harm a method. Its default parameters or the evaluation are the cause.",
        "more synthetic examples (evaluation.per_class), a fixed probe_c, more seeds",
    ),
    Kind(
        "The linear probe and the nearest neighbours disagree",
        "apart > 0.15",
        {
            "linear probe": "{probe:.2f}",
            "nearest neighbours": "{neighbours:.2f}",
        },
        "The two balanced accuracies differ widely (here in the worst seed), so the synthetic data "
        "may not resemble real data.",
        "check the figure of fidelity; more synthetic examples",
    ),
    Kind(
        "Scores come from different revisions of the evaluation code",
        "revisions > 1",
        {"revision": "{revision}"},
        "Differences between these results may come from the evaluation.",
        "run the same bench again: it evaluates saved generators anew",
    ),
    Kind(
        "Synthetic examples are longer or shorter than real ones",
        "norm < 0.67 or norm > 1.5",
        {"mean norm (real examples have 1)": "{norm:.2g}"},
        "The method learned directions rather than lengths. Examples longer than 1.2 are shortened "
        "to 1.2 before they are evaluated.",
        "more data or a larger ε; a smaller clip or radius, if the method has one",
    ),
    Kind(
        "Seeds differ widely",
        "highest > lowest + 0.3",
        {"balanced accuracy of each seed": "{each}"},
        "The mean over seeds says little.",
        "more seeds; show single seeds instead of their mean",
    ),
    Kind(
        "The KL term vanishes",
        "least_kl < 0.05",
        {_KL: "{least_kl:.2g}"},
        "The decoder ignores the latent code z.",
        "a smaller beta, longer training",
    ),
    Kind(
        "The clients' generators disagree",
        "mmd > 0.1 and mmd >= 0.5 * most_mmd",
        {_AT_THE_END.format("squared MMD"): "{mmd:.2f}", "largest": "{most_mmd:.2f}"},
        "The generators of different clients draw different data for the same class.",
        "the method fedhypevae-sites; to a lesser degree synthesis: client or mixture",
    ),
    Kind(
        "Synthesis uses codes that are drawn, not trained",
        "noisy and scope == 'hypernetwork'",
        {"noise": "on the {scope} alone"},
        "The clients' trained codes carry no noise, so they stay at their clients. The generator "
        "uses the random codes from which the clients started.",
        "noised: all, which adds noise to the trained codes and releases them; without noise "
        "(.inf in epsilon) trained codes are used",
    ),
)
"""The known failures, the worst first.

To add one, add an entry, and to :func:`seen` the columns that it needs.
"""


@dataclass(frozen=True)
class Finding:
    """A known failure that some settings show.

    Attributes:
        kind: The failure.
        table: One line per setting that shows it: method, setting, budget, and what was observed.
            All are texts. Some hold text of the user, so they are escaped when they are written.
    """

    kind: Kind
    table: pd.DataFrame

    @property
    def advice(self) -> str:
        """What the failure means and what usually helps."""
        return f"{self.kind.meaning} What usually helps: {self.kind.helps}."

    @property
    def summary(self) -> str:
        """The line for a terminal: how many settings, the first of them, and what usually helps."""
        method, place, budget, *values = self.table.iloc[0]
        heads = self.table.columns[3:]
        observed = [f"{head} {value}" for head, value in zip(heads, values, strict=True) if value]
        where = " · ".join([method, place, budget])
        if len(self.table) > 1:
            where = f"{len(self.table)} settings, such as {where}"
        return f"{self.kind.name} ({where}): {', '.join(observed)}. {self.advice}"


def round_frame(settings: SeedGroups, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the records of the rounds of some cells as numbers.

    Rounds that are not the training itself are left out: the messages of a warm start are no
    gradients and have no loss.

    Args:
        settings: The results; records of cells that are not in them are left out.
        records: The lines of ``rounds.jsonl``, in their order.

    Returns:
        One line per cell and round, in their order: ``cell_id``, ``round``, ``setting``, every
        loss, the numbers that are read beside it, ``lost`` (which losses are not finite, in
        words), ``kl_lost`` (whether the KL is not finite), and ``left`` (the share of the rounds
        that are still to come).
    """
    records = [record for record in records if record.get("main", True)]
    names = dict.fromkeys(name for record in records for name in record)
    losses = [name for name in names if name.startswith("loss_")]
    numbers = [*losses, "signal_norm", "noise_norm", *ROUND_NUMBERS]
    numbers.remove("noise_to_signal")
    lines = [
        {
            **record,
            "gradient_norm_50": _median_norm(record),
            "lost": " and ".join(loss_words(name) for name in losses if _is_lost(record, name)),
            "kl_lost": _is_lost(record, "kl"),
        }
        for record in records
    ]
    frame = pd.DataFrame(
        lines,
        columns=["cell_id", "round", *numbers, "lost", "kl_lost"],
    )
    cells = settings.rows.set_index("cell_id")
    frame["setting"] = frame["cell_id"].map(cells["setting"].to_dict())
    types = {"setting": "int64", "cell_id": "object", "lost": "object", "kl_lost": "bool"}
    frame = frame.dropna(subset="setting").astype(dict.fromkeys(numbers, "float64") | types)
    frame["noise_to_signal"] = frame["noise_norm"] / frame["signal_norm"]
    by_cell = frame.groupby("cell_id", sort=False)["round"]
    done = by_cell.cumcount() + 1
    return frame.assign(left=1 - done / by_cell.transform("size"))


def _median_norm(record: Mapping[str, Any]) -> float | None:
    """Return the median norm before clipping in a round; None if the method does not record it."""
    quantiles = record.get("gradient_norm_quantiles")
    if not quantiles:
        return None
    median: float = quantiles[len(quantiles) // 2]
    return median


def _is_lost(record: Mapping[str, Any], name: str) -> bool:
    """Return whether the number ``name`` of a record is not finite."""
    value = record.get(name)
    return isinstance(value, float) and not math.isfinite(value)


def loss_words(name: str) -> str:
    """Return the name of a loss in words."""
    return name.removeprefix("loss_").replace("_", " ")


def seen(settings: SeedGroups, rounds: pd.DataFrame) -> pd.DataFrame:
    """Return one line per setting with all columns that :data:`KINDS` uses.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`round_frame`.

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
    """Return the columns that follow from balanced accuracies and norms, one line per setting.

    Returns:
        ``score`` (mean), ``each`` (the scores of all seeds, in words), ``lowest`` and ``highest``
        seed, ``chance`` and ``ceiling`` (means), ``norm`` (that of the seed whose ratio to 1 is
        largest), ``before`` (the highest ``lowest`` at a smaller epsilon) and ``noiseless`` (the
        mean score without noise), the last two of the same method and place; ``revision`` of the
        evaluation code, and ``revisions``, their number in the whole run.
    """
    cells = settings.averaged
    by_setting = cells.groupby("setting")
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
        revision=by_setting["evaluation_source"].first(),
        revisions=cells["evaluation_source"].nunique(),
    )
    frame = frame.sort_values("epsilon_target", kind="stable")
    curve = ["label", *PLACE]
    with_budget = frame.dropna(subset="epsilon_target").groupby(curve, dropna=False)
    frame["before"] = with_budget["lowest"].transform(
        lambda lowest: lowest.cummax().ffill().shift()
    )
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
        ``least_kl`` and ``most_kl`` (KL in nats per example; infinite if it was not finite in any
        round), ``first_kl`` (the first finite KL), ``mmd`` and ``most_mmd`` (squared MMD between
        clients), ``lost`` and ``lost_from`` (which loss is not finite, and from which round on),
        and ``noise`` (the noise-to-signal ratio as a text, or empty).
    """
    by_cell = rounds.groupby("cell_id")
    # The mean of a cell's setting is the setting itself.
    late = rounds[rounds["left"] < LATE].groupby("cell_id").mean(numeric_only=True)
    by_setting = late.groupby("setting")
    late_kl = late["kl"].mask(by_cell["kl_lost"].any(), math.inf)
    kl = late_kl.groupby(late["setting"])
    finite_kl = rounds["kl"].where(rounds["kl"].abs() < math.inf)
    first_kl = finite_kl.groupby(rounds["cell_id"]).first().groupby(late["setting"])
    most_mmd = by_cell["cross_client_mmd"].max().groupby(late["setting"])
    lost = rounds[rounds["lost"] != ""].sort_values("round").groupby("setting")
    ratio = by_setting["noise_to_signal"].median()
    columns = {
        "least_kl": kl.min(),
        "most_kl": kl.max(),
        "first_kl": first_kl.median(),
        "mmd": by_setting["cross_client_mmd"].median(),
        "most_mmd": most_mmd.median(),
        "lost": lost["lost"].first(),
        "lost_from": lost["round"].first(),
        "noise": ratio.map("{:.3g}".format).where(
            (ratio > 0) & (ratio < math.inf),
            "",
        ),
    }
    return pd.DataFrame(columns)


def findings(settings: SeedGroups, rounds: pd.DataFrame) -> list[Finding]:
    """Return the known failures that some settings show, the worst first.

    Settings count whatever the status of their cells.

    Args:
        settings: The results.
        rounds: The rounds of their cells, see :func:`round_frame`.
    """
    lines = seen(settings, rounds)
    shown = []
    for kind in KINDS:
        affected: list[Any] = lines.query(kind.where, engine="python").to_dict("records")
        if not affected:
            continue
        table = [
            {
                "method": line["label"],
                "setting": setting_words(line, PLACE),
                "budget": epsilon_head(line["epsilon_target"]),
                **{head: text.format(**line) for head, text in kind.observed.items()},
            }
            for line in affected
        ]
        shown.append(Finding(kind, pd.DataFrame(table)))
    return shown
