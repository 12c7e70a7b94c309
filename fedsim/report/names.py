"""The words for methods, settings, budgets and spreads that tables and figures share."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from fedsim.errors import UserError, nearest
from fedsim.evaluation.measures import MEASURES
from fedsim.report.terminal import texts_of
from fedsim.results.columns import UNVERIFIED
from fedsim.results.stats import FEWEST_SEEDS, PLACE, Spread, weakest
from fedsim.words import counted, number, setting, spelled

PUBLIC_MARK = " †"
"""The mark that follows the label of a method which used public data."""
REFERENCES = {
    "ceiling": "a linear probe trained on all real training examples",
    "local-only": "the mean over clients of a linear probe trained on the client's own examples",
    "own classifier alone": "the mean over clients of a classifier trained on the client's own "
    "examples",
    "chance": "random guessing",
}
"""What each reference of a measure is, by its name."""
_CLAIM_WORDS = {
    "none": "no claim on ε",
    "not private": "not private",
    UNVERIFIED: "ε as stated by the author, not verified",
}
"""The words beside a label for claims that are not written as ``CLAIM ε``."""
_FACTS = {
    "dataset": "{}",
    "scheme": "partition {}",
    "alpha": "α = {}",
    "clients": "{} clients",
    "epsilon_target": "ε = {}",
    "delta": "δ = {}",
    "unit": "unit {}",
    "trust": "trust {}",
}
"""The columns that describe a run, with the words around their values."""
_SPREADS = {
    "ci95": "half-width of the Student-t 95 % confidence interval",
    "sd": "standard deviation",
    "range": "half the range",
}
"""What the number behind ± is in a table, by the kind of spread."""


def claims(facts: pd.DataFrame) -> dict[str, str]:
    """Return the claim of each method, by its label: what its epsilons rest on.

    The claim is the weakest one of the method's finite epsilons. It is ``refuted`` if an audit
    refuted one of them, and ``not private`` if the method has no epsilon.

    Args:
        facts: :attr:`SeedGroups.facts`, one line per setting.
    """
    return {str(label): _claim(method) for label, method in facts.groupby("label", sort=False)}


def _claim(facts: pd.DataFrame) -> str:
    """Return what the epsilons of one method rest on, given the lines of its settings."""
    if facts["epsilon_target"].isna().all():
        return "not private"
    if facts["claim_refuted"].any():
        return "refuted"
    # Without noise (ε = ∞) nothing is claimed, so only finite budgets count where there are any.
    private = facts[facts["epsilon_target"] < math.inf]
    if private.empty:
        private = facts
    return weakest(list(private["claim"])) or ""


def claim_words(word: str) -> str:
    """Return the words beside a method's label for a claim other than "proved"."""
    return _CLAIM_WORDS.get(word, f"{word} ε")


def named(facts: pd.DataFrame) -> dict[str, str]:
    """Return the name of each method in tables and legends, by its label.

    The name begins with the label. :data:`PUBLIC_MARK` follows if the method used public data.
    Brackets say that a method yields a classifier, and what its epsilon rests on if not a proof.

    Args:
        facts: :attr:`SeedGroups.facts`, one line per setting.
    """
    facts_of = facts.drop_duplicates("label").set_index("label")
    with_public_data = set(facts.dropna(subset="public")["label"])
    names = {}
    for label, claim in claims(facts).items():
        remarks = []
        if facts_of["yields"][label] == "classifier":
            remarks.append("classifier")
        if claim not in ("", "proved"):
            remarks.append(claim_words(claim))
        names[label] = label
        if label in with_public_data:
            names[label] += PUBLIC_MARK
        if remarks:
            names[label] += f" ({', '.join(remarks)})"
    return names


def reference_name(name: str, labels: Collection[str]) -> str:
    """Return the name of a reference in tables and curves, marked if a method has the same label.

    A line of a table is identified by its name, and ``local-only`` names a method and a reference.
    """
    while name in labels:
        name += " (reference)"
    return name


def placed(facts: pd.DataFrame, more: Sequence[str] = ()) -> tuple[list[str], pd.Series[str]]:
    """Return in words what all lines have in common, and what differs between them.

    Args:
        facts: One line per setting, with the columns :data:`PLACE`.
        more: Further columns to put into words, such as ``epsilon_target``.

    Returns:
        The common words for a title (a list of at most one text), and for every line the words of
        the columns that are not the same everywhere.
    """
    columns = [*PLACE, *more]
    varied = [name for name in columns if facts[name].nunique(dropna=False) > 1]
    same = [name for name in columns if name not in varied]
    # A list, because an empty frame has no first line.
    common = [setting_words(line, same) for line in facts.head(1).to_dict("records")]
    places = facts.apply(
        lambda line: setting_words(line, varied),
        axis=1,
    ).astype(str)
    return [words for words in common if words], places


def setting_words(line: Any, columns: Sequence[str]) -> str:
    """Return some columns of a setting in words, such as ``digits · α = 0.3 · 10 clients``.

    Args:
        line: A line of :attr:`SeedGroups.facts`, as a series or a dictionary.
        columns: Which of ``label``, :data:`PLACE` and ``epsilon_target`` to name.
    """
    known = {name: line[name] for name in columns if not pd.isna(line[name])}
    return setting(
        known.get("label"),
        known.get("dataset"),
        known.get("scheme"),
        alpha=known.get("alpha"),
        clients=known.get("clients"),
        epsilon=known.get("epsilon_target"),
    )


def run_words(facts: pd.DataFrame, without: Collection[str] = ()) -> list[str]:
    """Return data, partition, budgets, unit and trust of a run in words, one text per column.

    Args:
        facts: :attr:`SeedGroups.facts`.
        without: The columns to leave out.
    """
    words = []
    for column, text in _FACTS.items():
        values = facts[column].dropna().drop_duplicates().sort_values()
        if len(values) and column not in without:
            words.append(text.format(", ".join(texts_of(values))))
    return words


def caption_words(facts: pd.DataFrame, references: Sequence[str] = ()) -> Iterator[str]:
    """Yield the sentences that a table needs in a paper: data, partition, budget and references.

    Args:
        facts: :attr:`SeedGroups.facts`.
        references: The names of the references in the table.
    """
    words = run_words(facts, without=["epsilon_target"])
    if words:
        # Tables name an encoder in brackets behind the data set.
        data = "Data and encoder" if words[0].endswith(")") else "Data"
        yield f"{data}: {'; '.join(words)}."
    for name in references:
        yield f"{name.capitalize()}: {REFERENCES[name]}."


def epsilon_head(epsilon: float) -> str:
    """Return the head of an epsilon's column; NaN stands for methods without an epsilon."""
    if math.isnan(epsilon):
        return "no ε"
    return f"ε = {number(epsilon)}"


def known_measure(measure: str) -> str:
    """Return the name of a measure unchanged, if there is such a measure.

    Raises:
        UserError: There is no such measure; the message suggests the nearest name.
    """
    if measure not in MEASURES:
        raise UserError(
            "measure",
            f"there is no measure '{measure}'",
            nearest(measure, MEASURES),
        )
    return measure


def most_seeds(facts: pd.DataFrame) -> int:
    """Return the largest number of seeds over which a mean is taken; 0 without results."""
    if facts.empty:
        return 0
    return int(facts["seeds"].max())


def spread_words(spread: Spread, seeds: int) -> str:
    """Return the sentence that explains what is shown beside a mean over some seeds."""
    if seeds < 2:
        return "One seed, so no confidence interval."
    if spread == "ci95" and seeds < FEWEST_SEEDS:
        return f"Mean of 2 seeds; no confidence interval (needs at least {FEWEST_SEEDS} seeds)."
    return f"Mean ± {_SPREADS[spread]} over {counted(seeds, 'seed')}."


def parameter_words(parameters: Mapping[str, Any]) -> str:
    """Return parameters in words, such as ``clip 1, rounds 40``."""
    return ", ".join(f"{name} {spelled(value)}" for name, value in parameters.items())
