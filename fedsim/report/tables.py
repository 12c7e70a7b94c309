"""The tables of a report: means of a measure, differences, chosen parameters, and sites.

Every function builds a :class:`fedsim.report.table.Table` from
:class:`fedsim.results.stats.SeedGroups`:

- :func:`results_table`: the means of one measure, with references such as the ceiling;
- :func:`difference_table`: paired differences between methods;
- :func:`tuned_table`: the parameters that a search chose;
- :func:`site_table`: balanced accuracy by site.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.evaluation.subset import MOST_TRAIN_ROWS
from fedsim.grid.models import Evaluation
from fedsim.privacy.plan import THEOREMS
from fedsim.report.names import (
    caption_words,
    claim_words,
    claims,
    epsilon_head,
    known_measure,
    most_seeds,
    named,
    parameter_words,
    placed,
    reference_name,
    spread_words,
)
from fedsim.report.published import NOTE, published_lines
from fedsim.report.table import Table
from fedsim.results.columns import UNDRAWN, UNVERIFIED
from fedsim.results.stats import (
    FEWEST_SEEDS,
    PLACE,
    Compared,
    SeedGroups,
    paired_differences,
    price_of_privacy,
    same_budget,
    with_ends,
)
from fedsim.words import number

Order = Literal["given", "best", "name"]
"""The orders of methods in a table: as in the grid, by their mean, or by their label."""
_CLAIM_NOTES = {
    "stated": "the method's author states that ε is a theorem; the column check of the results "
    "says whether a fedsim check found a fault.",
    "heuristic": "ε is no theorem for this method, or a check found a fault.",
    UNVERIFIED: "the samples were made elsewhere, and fedsim neither counts nor checks their "
    "privacy.",
    "refuted": "an audit refutes the claim at one budget or more.",
}
"""The note below a table that explains each claim which is not proved."""
_FEWER_ROWS = (
    f"Ceiling and local-only are computed on a fixed choice of about {MOST_TRAIN_ROWS:,} training "
    "examples, with classes as equally frequent as possible."
)
"""The note below a table whose references use a part of the training examples."""
_BOLD = (
    "Bold: best generator and best classifier in each column, of the private methods whose ε is "
    "proved or stated."
)
"""The note below a table that explains bold numbers."""
MOST_SITES = 24
"""The largest number of sites in a table by site. With more sites there is no such table."""
_PUBLISHED = 2
"""The ``kind`` of a published number's line, sorted after generators (0) and classifiers (1)."""
_REFERENCE = 3
"""The ``kind`` of a reference's line."""
_CSV_NAMES = {"half": "ci95", "n": "seeds"}
"""The names in CSV of columns that are called otherwise in :meth:`SeedGroups.means`."""


def decimal(value: float, digits: int = 3, sign: str = "") -> str:
    """Return a number with a fixed number of decimals, or from a million on with four digits.

    Args:
        value: The number.
        digits: The number of decimals. A number of a million or more would be too wide for a
            column, so it is written as 1.235e+06.
        sign: ``+`` writes the sign of positive numbers, too.
    """
    if abs(value) >= 1e6:
        return number(value, 4)
    return f"{value:{sign}.{digits}f}"


def mean_text(line: Mapping[Any, Any], digits: int = 3, sign: str = "") -> str:
    """Return a mean as text, followed by ± and half the distance between its ends.

    Args:
        line: Holds ``mean``, ``low`` and ``high``. Where ``low`` is NaN there is no ±.
        digits: The number of decimals.
        sign: ``+`` writes the sign of positive means, too.
    """
    text = decimal(line["mean"], digits, sign)
    if math.isnan(line["low"]):
        return text
    return f"{text}±{decimal((line['high'] - line['low']) / 2, digits)}"


def distance_to_best(means: pd.Series[float], best: float) -> pd.Series[float]:
    """Return how far means are from the best value: the smaller, the better."""
    if best == math.inf:
        return -means
    return (means - best).abs()


def ordered(settings: SeedGroups, measure: str, order: Order) -> list[str]:
    """Return the labels of the methods in the order of a table's lines.

    Args:
        settings: The results.
        measure: The measure by whose mean over all settings ``best`` orders.
        order: ``given`` is the order of the grid, also used where a measure has no best value;
            ``best`` puts the best mean first; ``name`` is alphabetical.
    """
    labels = list(settings.facts["label"].unique())
    if order == "name":
        return sorted(labels)
    best = MEASURES[measure].best
    if order == "given" or best is None:
        return labels
    means = settings.facts.join(settings.mean(measure)).groupby("label")[measure].mean()
    distance = distance_to_best(means, best).fillna(math.inf)
    return sorted(labels, key=distance.__getitem__)


def results_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    order: Order = "given",
    digits: int = 3,
) -> Table:
    """Return the table of a measure: means with their spread over seeds, and references.

    Published numbers have lines of their own, which are never bold. The numbers for CSV leave them
    out.

    Args:
        settings: The results.
        measure: The name of the measure, a key of :data:`MEASURES`.
        order: The order of the methods, see :func:`ordered`.
        digits: The number of decimals.

    Raises:
        UserError: There is no such measure, or no result has it. A table of balanced accuracy may
            be empty.
    """
    means = settings.means([known_measure(measure)]).set_index("setting")
    if means.empty and measure != "balanced_accuracy":
        found = dict.fromkeys(settings.means(list(MEASURES))["measure"])
        hint = "look at the status of the cells in results.jsonl"
        if found:
            hint = f"give a measure that finished cells have: {', '.join(found)}"
        raise UserError("measure", f"no finished cell has a value of {measure}", hint)
    facts = settings.facts
    common, places = placed(facts)
    ranks = facts["label"].map(ordered(settings, measure, order).index)
    methods = _method_lines(facts, means, digits).assign(
        where=places,
        rank=ranks,
    )
    references = _reference_lines(settings, methods, measure, digits)
    lines = pd.concat([methods, *references.values()])
    published = published_lines(settings.published, measure, methods)
    if len(published):
        lines = pd.concat([lines, published.assign(kind=_PUBLISHED)])
    lines["place"] = lines["where"].map(list(dict.fromkeys(places)).index)
    lines = lines.sort_values(["place", "kind", "rank"], kind="stable")
    notes = list(_mean_notes(settings, means))
    has_fewer_rows = settings.averaged["reference_rows"] < settings.averaged["train_rows"]
    if "local-only" in references and has_fewer_rows.any():
        notes.append(_FEWER_ROWS)
    definition = MEASURES[measure]
    notes.extend(definition.notes)
    best = definition.best
    if best is not None:
        lines["best"] = _best(lines, best, digits)
        if lines["best"].any():
            notes.append(_BOLD)
    if len(published):
        notes.append(NOTE)
    columns = ["label", "claim", "epsilon_target", "delta", "unit", "trust", "mean", "half", "n"]
    return built(
        measure,
        [definition.title, *common],
        lines,
        [*notes, *method_notes(facts)],
        means[[*PLACE, *columns]].assign(measure=measure),
        [*caption_words(facts, list(references)), *notes[:1]],
    )


def _method_lines(facts: pd.DataFrame, means: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return the lines of the methods in a table of results.

    Args:
        facts: :attr:`SeedGroups.facts`.
        means: The means of the measure by setting; settings without the measure are missing.
        digits: The number of decimals.

    Returns:
        ``facts`` with ``method`` (its name), ``kind`` (0 for generators, 1 for classifiers),
        ``text``, ``mean``, and ``holds`` (whether the method may be marked as best).
    """
    most = most_seeds(facts)
    results = facts.join(means[["mean", "low", "high", "n"]]).to_dict("records")
    return facts.assign(
        method=facts["label"].map(named(facts)),
        kind=(facts["yields"] == "classifier").astype(int),
        text=[_value(line, most, digits) for line in results],
        mean=means["mean"].astype("float64"),
        holds=facts["label"].map(claims(facts)).isin([*THEOREMS, "not private"]),
    )


def _reference_lines(
    settings: SeedGroups, methods: pd.DataFrame, measure: str, digits: int
) -> dict[str, pd.DataFrame]:
    """Return the lines of each reference of a measure: one line per place that has the reference.

    Args:
        settings: The results.
        methods: The lines of the methods, from which places get their words.
        measure: The name of the measure.
        digits: The number of decimals.
    """
    places = methods.drop_duplicates("where")[[*PLACE, "where"]]
    labels = set(methods["label"])
    found = {}
    for rank, (name, column) in enumerate(MEASURES[measure].references):
        levels = settings.reference(column)
        if levels.empty:
            continue
        texts = levels.map(lambda level: decimal(level, digits))
        found[name] = (
            texts.reset_index(name="text")
            .merge(places, on=PLACE)
            .assign(
                method=reference_name(name, labels),
                kind=_REFERENCE,
                rank=rank,
                epsilon_target=math.nan,
            )
        )
    return found


def built(
    name: str,
    title: Sequence[str],
    lines: pd.DataFrame,
    notes: Iterable[str],
    numbers: pd.DataFrame,
    caption: Iterable[str] = (),
) -> Table:
    """Return a table made of one line per value.

    Args:
        name: The table's name.
        title: The parts of its title.
        lines: The values, in the order of the table: ``where`` (place), ``method``, ``text``, and
            either ``head`` (the head of its column) or ``epsilon_target``; ``best`` is optional.
        notes: The notes below the table.
        numbers: The numbers for CSV.
        caption: The sentences of the LaTeX caption behind the title.
    """
    if "head" in lines:
        heads = list(lines["head"].unique())
    else:
        epsilons = lines["epsilon_target"].astype("float64")
        heads = list(epsilons.drop_duplicates().sort_values().map(epsilon_head))
        lines = lines.assign(head=epsilons.map(epsilon_head))
    lines = lines.drop_duplicates(
        ["where", "method", "head"],
        keep="last",
    )
    index = pd.MultiIndex.from_frame(lines[["where", "method"]].drop_duplicates())

    def wide(values: str) -> pd.DataFrame:
        frame = lines.pivot(
            index=["where", "method"],
            columns="head",
            values=values,
        )
        return frame.reindex(index=index)[heads].rename_axis(columns=None)

    best = None
    if "best" in lines:
        best = wide("best").fillna(False).astype(bool)
    return Table(
        name,
        " · ".join(title),
        wide("text").fillna(""),
        tuple(notes),
        numbers.rename(columns=_CSV_NAMES),
        best,
        tuple(caption),
    )


def _value(line: Mapping[Any, Any], most: int, digits: int) -> str:
    """Return the text of one setting: its mean, or why it has none.

    Args:
        line: A line of :attr:`SeedGroups.facts` with ``mean``, ``low``, ``high`` and ``n``.
        most: The largest number of seeds in the table.
        digits: The number of decimals.
    """
    if not math.isnan(line["mean"]):
        return _with_count(mean_text(line, digits), line, most)
    if line["seeds"]:
        return ""
    return next(
        (status for status in reversed(UNDRAWN) if line[status]),
        "",
    )


def _with_count(text: str, line: Mapping[Any, Any], most: int) -> str:
    """Return a text, followed by its number of seeds if others in the table have more."""
    if line["n"] < most:
        return f"{text} (n={line['n']:.0f})"
    return text


def _best(lines: pd.DataFrame, best: float, digits: int) -> pd.Series[bool]:
    """Return which lines have the best mean of their place, kind and epsilon.

    Means count as they are shown, rounded. Only methods whose claim ``holds`` can be best, and
    only where another method is worse.
    """
    means = lines["mean"].round(digits).where(lines["holds"].eq(True))
    distance = distance_to_best(means, best).round(digits)
    keys = [lines["where"], lines["kind"], lines["epsilon_target"]]
    groups = distance.groupby(keys, dropna=False)
    least = groups.transform("min")
    return (distance == least) & (least < groups.transform("max"))


def _mean_notes(settings: SeedGroups, means: pd.DataFrame) -> Iterator[str]:
    """Yield the notes that explain the means of a table, and which results they leave out.

    Args:
        settings: The results.
        means: The means of the measure, one line per setting.
    """
    facts = settings.facts
    if len(means):
        yield spread_words(settings.spread, most_seeds(facts))
    fewest_seeds = 2
    if settings.spread == "ci95":
        fewest_seeds = FEWEST_SEEDS
    if ((means["n"] >= fewest_seeds) & means["half"].isna()).any():
        yield "No ±: all seeds gave the same value."
    left_out = facts[[*UNDRAWN]].sum()
    counts = [f"{count} {status}" for status, count in left_out.items() if count]
    if left_out.sum() == 1:
        yield f"{counts[0]} experiment is left out of the averages."
    elif counts:
        yield f"{' and '.join(counts)} experiments are left out of the averages."


def method_notes(facts: pd.DataFrame) -> Iterator[str]:
    """Yield the notes that explain the remarks beside methods: claims and public data."""
    words = claims(facts).values()
    for word, text in _CLAIM_NOTES.items():
        if word in words:
            yield f"{claim_words(word)}: {text}"
    public_names = facts["public"].dropna().unique()
    if len(public_names):
        yield f"† marks a method that uses public data: {', '.join(map(str, public_names))}."


def difference_table(
    settings: SeedGroups,
    measure: str = "balanced_accuracy",
    digits: int = 3,
    compared: Compared = same_budget,
) -> Table | None:
    """Return the table of paired differences between methods, Holm-corrected within each place.

    Args:
        settings: The results.
        measure: The name of the measure.
        digits: The number of decimals.
        compared: Says which pairs of settings are compared; default: those with equal budgets.

    Returns:
        The table, or None if no two methods share two seeds.
    """
    differences = paired_differences(
        settings,
        known_measure(measure),
        compared,
    )
    if differences.empty:
        return None
    first = settings.facts.loc[differences["first"]].reset_index()
    second = settings.facts.loc[differences["second"]].reset_index()
    # A method that is compared with itself without noise needs the budget in its name.
    is_itself = (first["label"] == second["label"]) & (second["epsilon_target"] == math.inf)
    other = second["label"].where(
        ~is_itself,
        second["label"] + " at ε = ∞",
    )
    seeds = int(differences["n"].max())
    common, places = placed(first)
    lines = first[["epsilon_target"]].assign(
        where=places,
        method=first["label"] + " − " + other,
        text=[_difference(line, seeds, digits) for line in differences.to_dict("records")],
    )
    notes = (
        "The first method minus the second one, over the seeds that both have.",
        spread_words(settings.spread, seeds),
        "p: two-sided paired t-test, Holm-corrected for all differences of one place; there is no "
        "p where the differences do not vary. Confidence intervals are not corrected.",
    )
    numbers = first[PLACE].assign(
        first=first["label"], second=other, epsilon_target=first["epsilon_target"], measure=measure
    )
    return built(
        f"{measure}-differences",
        [f"{MEASURES[measure].title}, paired differences", *common],
        lines,
        notes,
        numbers.join(differences[["mean", "half", "n", "p", "p_holm"]]),
        [*caption_words(first), *notes],
    )


def chosen_pair(first: str, second: str) -> Compared:
    """Return the ``compared`` of :func:`difference_table` for two methods, given by label.

    Settings of one budget are compared, and private settings of the first method with settings
    of the second one without noise.
    """

    def is_chosen(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        if (one["label"], other["label"]) != (first, second):
            return False
        return same_budget(one, other) or price_of_privacy(one, other)

    return is_chosen


def _difference(line: Mapping[Any, Any], most: int, digits: int) -> str:
    """Return the text of one paired difference, with its corrected p-value if it has one."""
    text = mean_text(line, digits, "+")
    p = line["p_holm"]
    if p < 0.001:
        text += " p<0.001"
    elif not math.isnan(p):
        text += f" p={p:.3f}"
    return _with_count(text, line, most)


def tuned_table(settings: SeedGroups) -> Table | None:
    """Return the table of what tuned cells chose, and after how many trainings.

    Returns:
        The table, with one text per method and budget that joins the choices of all seeds; None
        if nothing was tuned.
    """
    cells = settings.averaged.dropna(subset="tuning")
    if cells.empty:
        return None
    choices = cells["tuning"].map(
        lambda tuning: f"{parameter_words(tuning['chosen'])}: {tuning['trained']}"
    )
    facts = settings.facts.loc[cells["setting"].unique()]
    common, places = placed(facts)
    texts = choices.groupby(cells["setting"]).agg("; ".join)
    lines = facts.assign(
        where=places,
        method=facts["label"],
        text=texts,
    )
    note = (
        "The number of trainings is not private and must not be released. The ε of a private "
        "search covers all its trainings together."
    )
    return built(
        "chosen",
        ["Chosen parameters, and the number of trainings", *common],
        lines,
        [note],
        lines[["where", "method", "epsilon_target", "text"]],
    )


def site_table(settings: SeedGroups, clients: pd.DataFrame, digits: int = 3) -> Table | None:
    """Return the table of balanced accuracy by site.

    A site is a client that was evaluated on its own test examples, or a site that took no part in
    training and gave all test examples.

    Args:
        settings: The results.
        clients: The evaluations of single clients of the run, by ``cell_id``; may be empty.
        digits: The number of decimals.

    Returns:
        The table, with a last column for the mean over the sites; None if there are no sites, or
        more than :data:`MOST_SITES`.
    """
    examples, scores = _site_scores(settings, clients)
    if scores.empty or scores["name"].nunique() > MOST_SITES:
        return None
    facts = settings.facts
    # The name of a data set says which site was left out of it; here every site has a column.
    whole_names = facts["dataset"].str.replace(
        r" \(.* unseen\)$",
        "",
        regex=True,
    )
    facts = facts.assign(
        dataset=whole_names,
        method=facts["label"].map(named(facts)),
    )
    scores = scores.merge(facts, left_on="setting", right_index=True)
    alone = scores.dropna(subset=["alone"]).drop_duplicates([*PLACE, "seed", "name"])
    alone = alone.assign(
        score=alone["alone"], method="the site's own real examples", epsilon_target=math.nan
    )
    scores = pd.concat([scores, alone]).reset_index(drop=True)
    common, scores["where"] = placed(scores, ["epsilon_target"])
    by_seed = scores.groupby(
        ["where", "method", "seed"],
        sort=False,
    )["score"]
    over_sites = by_seed.mean().reset_index().assign(name=_name_of_mean(scores["name"]))
    by_site = pd.concat([scores, over_sites]).groupby(
        ["where", "method", "name"],
        sort=False,
    )
    stats = by_site["score"].agg(["mean", "std", "min", "max", "count"])
    stats = stats.rename(columns={"count": "n"}).reset_index()
    numbers = with_ends(stats, settings.spread)
    texts = [mean_text(line, digits) for line in numbers.to_dict("records")]
    spread = spread_words(settings.spread, most_seeds(facts))
    return built(
        "sites",
        ["Balanced accuracy by site", examples, *common],
        numbers.assign(head=numbers["name"], text=texts),
        [spread, "The last column is the mean over the sites."],
        numbers.rename(columns={"name": "site"}).drop(columns=["low", "high"]),
        [f"Scores are {examples}.", *caption_words(facts), spread],
    )


def _name_of_mean(sites: pd.Series[str]) -> str:
    """Return the head of the column with the mean over sites; a site may be called "mean", too."""
    name = "mean"
    while name in sites.to_numpy():
        name += " over sites"
    return name


def _site_scores(settings: SeedGroups, clients: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the scores of single sites, and on which examples they are.

    Returns:
        Which examples the scores are on, in words, and one line per result and site: ``setting``,
        ``seed``, ``name`` (of the site), ``score``, and ``alone`` (the score of the site's own real
        examples, or NaN).
    """
    results = settings.averaged[["setting", "seed", "cell_id", "unseen", "balanced_accuracy"]]
    if len(clients) and clients["cell_id"].isin(results["cell_id"]).any():
        examples = "on the site's own test examples"
        columns = {"own_balanced_accuracy": "score", "local_only_balanced_accuracy": "alone"}
        by_client = clients[["cell_id", "name", *columns]].rename(columns=columns)
        scores = results.merge(by_client, on="cell_id")
    else:
        examples = "on a site that took no part in training"
        columns = {"unseen": "name", "balanced_accuracy": "score"}
        scores = results.rename(columns=columns).assign(alone=math.nan)
    scores = scores.astype({"score": "float64", "alone": "float64"})
    return examples, scores.dropna(subset=["name", "score"])


def measures_of(settings: SeedGroups, *, terminal: bool = False) -> list[str]:
    """Return the measures that get a table: balanced accuracy, then all others with values.

    Args:
        settings: The results.
        terminal: Only those for a terminal: the measures that are marked so, and the measures of
            evaluators that the grid asked for instead of the default ones.
    """
    default_evaluators = Evaluation().evaluators
    asked: set[str] = set()
    for evaluators in settings.rows.get("evaluation.evaluators", ()):
        if isinstance(evaluators, list | tuple) and tuple(evaluators) != default_evaluators:
            asked.update(evaluators)
    shown = ["balanced_accuracy"]
    for name, measure in MEASURES.items():
        # The measures of an evaluator begin with its name, except those of fidelity.
        evaluator = name.partition("_")[0]
        if measure.fidelity:
            evaluator = "fidelity"
        is_wanted = measure.terminal or evaluator in asked or not terminal
        if measure.table and is_wanted and settings.averaged[name].notna().any():
            shown.append(name)
    return list(dict.fromkeys(shown))
