"""The verdict: the methods of a run compared by all measures at once.

:func:`verdict_table` shows the mean rank of each method in each measure, and how often one chosen
method beats each rival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from fedsim.evaluation.measures import MEASURES
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.names import caption_words, named, placed
from fedsim.report.table import Table
from fedsim.report.tables import built, decimal, distance_to_best, method_notes
from fedsim.report.terminal import texts_of
from fedsim.results.ranks import FEWEST_SETTINGS, outcomes, ranks_of
from fedsim.results.stats import BUDGET, PLACE, SeedGroups

OVERALL = "all"
"""The column of mean ranks over all measures."""
HEADS = {
    "balanced_accuracy": "balanced",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "knn_balanced_accuracy": "kNN",
    "coverage": "coverage",
    "frechet_distance": "Fréchet",
    "real_or_synthetic": "two-sample",
    "membership_auc": "membership",
}
"""The measures of a verdict, with the heads of their columns."""
_TESTS = {
    "settings": "(number of settings)",
    "friedman_p": "(p of Friedman's test)",
    "critical_difference": "(critical difference)",
}
"""The columns of :func:`ranks_of` that are lines below the mean ranks, with their names."""
_NOTES = (
    "Mean rank: the methods are ranked in each setting (data set, partition and budget) by their "
    "means over seeds. The table shows the mean over settings.",
    "Lower is better for Fréchet and membership, closer to 0.5 for two-sample, and higher for all "
    "others.",
    f"The column {OVERALL} is the mean rank over all measures, among the methods that have all of "
    "them. It has no test, because measures depend on each other.",
    "Won/level/lost: the number of settings in which the method is better, level or worse. It is "
    "level if the 95 % interval of the paired difference over seeds contains 0. Level does not "
    "mean equal, and of 20 settings of equal methods about one is won or lost by chance. The "
    f"column {OVERALL} adds up the counts of all measures.",
)
"""The notes below every verdict."""
_TOO_FEW = (
    f"With fewer than {FEWEST_SETTINGS} settings there is no critical difference. These ranks "
    "alone do not show that one method is better than another one."
)
"""The note where the settings are too few for a test."""
_TEST_NOTE = (
    "Mean ranks that differ by less than the critical difference do not show that one method is "
    "better (Nemenyi's test at 5 %, Demšar 2006). It counts only where p of Friedman's test is "
    "below 0.05. Both tests assume independent settings. Settings of the same data are not "
    "independent, so the tests find too many differences."
)
"""The note that explains the tests of mean ranks."""
_UNRANKED = (
    "A rank needs the measure in every setting that two methods share, and an ε if other methods "
    "have one. External samples are never ranked. Not ranked in every column:"
)
"""The beginning of the note on methods that lack ranks."""


def verdict_table(
    settings: SeedGroups, digits: int = 3, subject: str | None = None
) -> Table | None:
    """Return the table that compares methods by all measures that the results have.

    Its first block has the mean rank of each method in each measure. Its second block counts how
    often one method won, was level and lost against each rival.

    Args:
        settings: The results.
        digits: The number of decimals of mean ranks.
        subject: The label of the method that is compared with its rivals. Default: the first method
            of the grid that is compared.

    Returns:
        The table, or None if no two methods share all their settings in any measure.
    """
    losses = _losses(settings)
    ranks = _ranks(losses)
    if ranks.empty:
        return None
    subject = subject or str(losses.averaged["label"].iloc[0])
    by_measure = [
        outcomes(losses, measure, subject).assign(measure=measure)
        for measure in ranks["measure"].unique()
        if measure != OVERALL
    ]
    counts = pd.concat(by_measure)
    totals = counts.groupby("rival", sort=False)[["won", "level", "lost"]].sum()
    counts = pd.concat([counts, totals.reset_index().assign(measure=OVERALL)])
    tests = ranks.drop_duplicates("measure").melt("measure", [*_TESTS], "method").dropna()
    names = named(settings.facts)
    block = "Mean rank (1 is best)"
    lines = pd.concat(
        [
            ranks.assign(
                where=block,
                method=ranks["label"].map(names),
                text=[decimal(mean, digits) for mean in ranks["mean_rank"]],
            ),
            tests.assign(
                where=block,
                method=tests["method"].map(_TESTS),
                text=texts_of(tests["value"], 3).mask(tests["value"] < 0.001, "<0.001"),
            ),
            counts.assign(
                where=f"{subject}: won/level/lost against",
                method=counts["rival"].map(names),
                text=[f"{line.won}/{line.level}/{line.lost}" for line in counts.itertuples()],
            ),
        ]
    )
    common, _ = placed(settings.facts)
    return built(
        "verdict",
        ["Verdict by all measures", *common],
        lines.assign(head=lines["measure"].replace(HEADS)),
        [*_notes(ranks, settings.facts), *method_notes(settings.facts)],
        pd.concat([ranks, counts.assign(label=subject)]),
        caption_words(settings.facts),
    )


def _losses(settings: SeedGroups) -> SeedGroups:
    """Return the results that are ranked, with every measure as a loss: smaller is better.

    External samples are left out, because nobody verified them. Methods without ε are left out if
    others have one, because methods are compared at one budget.
    """
    rows = settings.rows[settings.rows["algorithm"] != EXTERNAL]
    if rows["epsilon_target"].notna().any():
        rows = rows.dropna(subset="epsilon_target")
    losses = {}
    for measure in HEADS:
        best = MEASURES[measure].best
        assert best is not None
        losses[measure] = distance_to_best(rows[measure], best)
    return replace(settings, rows=rows.assign(**losses))


def _ranks(losses: SeedGroups) -> pd.DataFrame:
    """Return the mean ranks of the methods in each measure, and then over all measures.

    For each measure only those settings count in which at least two methods have a value. A method
    is ranked if it has a value in all of them. The ranks over all measures compare only the methods
    that are ranked in each measure.

    Args:
        losses: The results of :func:`_losses`.

    Returns:
        The lines of :func:`fedsim.results.ranks.ranks_of`, with the ``measure``. The frame is empty
        if no measure ranks two methods.
    """
    means = losses.means([*HEADS])
    # A setting here is a place and a budget, whatever the method.
    means["comparison"] = means.groupby([*PLACE, *BUDGET], dropna=False).ngroup()
    frames = {}
    for measure in HEADS:
        of_measure = means[means["measure"] == measure]
        wide = of_measure.pivot_table("mean", "comparison", "label")
        contested = wide[wide.count(axis="columns") > 1]
        complete = contested.dropna(axis="columns")
        if not complete.empty and complete.shape[1] > 1:
            frames[measure] = complete
    if not frames:
        return pd.DataFrame()
    lines = [ranks_of(frame).assign(measure=measure) for measure, frame in frames.items()]
    shared = [*set.intersection(*map(set, frames.values()))]
    by_measure = [frame[shared].rank(axis="columns").mean() for frame in frames.values()]
    overall = pd.concat(by_measure).groupby("label").mean()
    lines.append(overall.reset_index(name="mean_rank").assign(measure=OVERALL))
    return pd.concat(lines)


def _notes(ranks: pd.DataFrame, facts: pd.DataFrame) -> Iterator[str]:
    """Yield the notes below a verdict.

    Args:
        ranks: See :func:`_ranks`.
        facts: :attr:`SeedGroups.facts`.
    """
    yield from _NOTES
    if ranks["critical_difference"].isna().all():
        yield _TOO_FEW
    else:
        yield _TEST_NOTE
    ranked = ranks["label"][ranks["measure"] == OVERALL]
    unranked = facts["label"][~facts["label"].isin(ranked)].unique()
    if len(unranked):
        yield f"{_UNRANKED} {', '.join(unranked)}."
