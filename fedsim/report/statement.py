"""The privacy statement of a method: what is protected from whom, and how that was counted.

A statement is a list of terms (claim, unit, budget, noise, …), each with a sentence. It is printed
by ``fedsim statement`` and shown in the report page and in the card of a released data set. The
last term, "not covered", lists what a reader could believe to be protected and is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from fedsim.evidence.prove import Proof
from fedsim.privacy.plan import THEOREMS
from fedsim.privacy.selection import SCORE
from fedsim.report.tables import parameter_words
from fedsim.results.columns import Row, large_deltas
from fedsim.words import at_most, number, spelled

UNITS = {
    "example": "one training example: neighbouring data sets differ in one example of one client",
    "client": "one client: what it contributes is there or is zero; the number of clients stays a "
    "public divisor",
}
"""When two data sets are neighbours, by the unit of protection."""
TRUSTS = {
    "aggregate": "only the sum over clients is seen (secure aggregation or a trusted "
    "server), noise "
    "is added once to it",
    "silo": "every client's message is private by itself, each carries the full noise",
}
"""Who sees what, by the trust of a setting."""
NOISES = {
    "seeded": "it follows from a seed that stands in the results: this measures what a method "
    "costs, nothing made here may be released",
    "secret": "AES-256 under a random key that is kept nowhere; a generator whose claim is a "
    "theorem may be released under its ε",
}
"""What the randomness of the noise permits, by the kind of noise."""
CLAIMS = {
    "proved": "(ε, δ) is a theorem for this method",
    "stated": "(ε, δ) is a theorem by its author's word, also that the loss or statistic is per "
    "example",
    "heuristic": "(ε, δ) is computed for the noise that was added, but is not a theorem for this "
    "method",
    "none": "no privacy is claimed",
}
"""What an epsilon rests on, by the claim."""
CHECKS = {
    "passed": "a full fedsim check of this code with these parameters, but for numbers of rounds "
    "and steps, found no fault on small data sets; it looks for mistakes, not for malice, and "
    "proves nothing",
    "failed": "a fedsim check of this code found a fault in what the claim rests on",
    None: "no full fedsim check of this code with these parameters has passed",
}
"""How the check of a method's code ended, by the column ``check`` of a result."""
SCOPES = {
    "joint": "everything that depends on a unit",
    "shared": "the shared parameters alone",
    "hypernetwork": "the hypernetwork alone",
}
"""What the noise covers, by the scope of a plan."""
ACCOUNTANTS = {
    "prv": "numerical composition of privacy loss random variables (Gopi, Lee & Wutschitz 2021, "
    "theorem 5.5; Opacus), an upper bound",
    "rdp": "Rényi composition (Mironov, Talwar & Zhang 2019; conversion of Balle et al. 2020), "
    "an upper bound",
}
"""How epsilon is computed, by the accountant."""
_NONE = {
    "failed": "no cell of it has finished",
    "unaccounted": "what ran is not what was planned, so nothing is known of its ε",
    "refuted": "an audit refutes what it claims",
}
"""Why a method has no guarantee, by the status of its results."""
_UNPROVED = {"differs": "a row of it contradicts itself", "not proved": "a row of it is not proved"}
"""Why a method has no guarantee, by the verdict of ``fedsim verify`` on one of its results."""
_SETTING = attrgetter("unit", "trust", "claim", "check", "scope", "noise", "status")
"""The columns that private results of one statement have in common."""


@dataclass(frozen=True)
class Statement:
    """The statement of one method under one unit, trust, claim and kind of noise.

    Attributes:
        method: The method's label.
        parts: Pairs of a term, such as ``budget``, and a sentence. A term may occur repeatedly.
    """

    method: str
    parts: tuple[tuple[str, str], ...]

    @property
    def lines(self) -> Iterator[str]:
        """The statement as lines of plain text: the method, then one indented line per sentence."""
        yield self.method
        for term, text in self.parts:
            yield f"  {term}: {text}"


def unit_words(unit: str) -> str:
    """Return in words when two data sets are neighbours.

    Args:
        unit: ``example``, ``client``, or the column whose values are groups.
    """
    of_column = (
        "one group: neighbouring data sets differ in all rows of one client that have one "
        f"value of {unit}, however many they are"
    )
    return UNITS.get(unit, of_column)


def public_sentence(name: str | None, licence: str | None) -> str:
    """Return what public data means for the budget.

    Args:
        name: The name of the public data set.
        licence: Its licence in words; None if it is not known.
    """
    free = "no unit's rows; what is made of them alone costs nothing, and ε does not protect them"
    return f"{name} (licence: {licence or 'not known'}): {free}"


def statements(
    rows: Sequence[Row], proofs: Sequence[Proof] = (), only: Collection[str] | None = None
) -> list[Statement]:
    """Return one statement for every method, and for each unit, trust, claim and noise of it.

    Results that failed, are unaccounted or refuted are left out. A method that has no other
    results, or that has a result which is not proved, gets a statement that it has no guarantee.

    Args:
        rows: The results of a run.
        proofs: The verdicts of ``fedsim verify`` on all results in their order; may be empty.
        only: The ids of the cells to state; default: all. What the other results say against a
            method, such as a refuting audit, counts all the same.
    """
    unproved: dict[str, Proof] = {}
    for proof in proofs:
        if proof.verdict in _UNPROVED:
            unproved.setdefault(proof.row.label, proof)
    refuted = {(row.label, row.unit, row.trust): row for row in rows if row.status == "refuted"}
    asked = [row for row in rows if only is None or row.cell_id in only]
    valid = [row for row in asked if row.status in ("ok", "overspent")]
    stated = [
        _statement(group, refuted.get((group[0].label, group[0].unit, group[0].trust)))
        for group in _settings([row for row in valid if row.label not in unproved])
    ]
    labels = {statement.method for statement in stated}
    statuses = {row.label: row.status for row in asked if row.label not in labels}
    for label, status in statuses.items():
        if label in unproved:
            why = f"{_UNPROVED[unproved[label].verdict]}: {unproved[label].why}"
        else:
            why = _NONE[status]
        stated.append(Statement(label, (("guarantee", f"none: {why}"),)))
    return stated


def _settings(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the results of each statement: same method, and same setting if they are private.

    A method that ran without noise beside finite budgets has no statement of its runs without
    noise.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.label,)
        if _is_private(row):
            key += _SETTING(row)
        groups.setdefault(key, []).append(row)
    private = {row.label for row in rows if _is_private(row)}
    return [
        group for group in groups.values() if _is_private(group[0]) or group[0].label not in private
    ]


def _statement(rows: Sequence[Row], refuted: Row | None) -> Statement:
    """Return the statement of results of one setting, in which equal sentences occur once.

    Args:
        rows: The results.
        refuted: A result of the same method, unit and trust that an audit refutes, if any.
    """
    if rows[0].is_external:
        parts = [_external(row) for row in rows]
    elif _is_private(rows[0]):
        parts = list(_private_parts(rows))
    else:
        parts = [("guarantee", _no_guarantee(rows[0]))]
    if refuted is not None:
        words = "one refutes the claim at another budget"
        if refuted.audited_form:
            words += f", {refuted.audited_form}"
        parts.append(("audit", f"{words}: no (ε, δ) here is a guarantee"))
    return Statement(rows[0].label, tuple(dict.fromkeys(parts)))


def _is_private(row: Row) -> bool:
    """Return whether a result has a finite epsilon."""
    return row.epsilon_target is not None and math.isfinite(row.epsilon_target)


def _is_tuned(row: Row) -> bool:
    """Return whether a result's budget paid for a search of parameters."""
    return row.tuning is not None and not row.tuning["free"]


def _once(texts: Iterable[str], separator: str = ", ") -> str:
    """Return some texts joined, without repetitions."""
    return separator.join(dict.fromkeys(texts))


def _no_guarantee(row: Row) -> str:
    """Return the sentence of a method that added no noise."""
    reason = "it adds no noise, and ε has no meaning for it"
    if row.epsilon_target is not None:
        reason = "it ran without noise (ε = ∞)"
    return f"none: {reason}; nothing that it makes may be released as private"


def _private_parts(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield the terms and sentences of private results of one setting."""
    first = rows[0]
    yield "claim", _claim(first)
    if first.check or first.claim == "stated":
        yield "check", CHECKS[first.check]
    yield "unit", unit_words(first.unit or "example")
    yield "relation", f"{first.relation}: neighbours differ in the presence of one unit"
    yield "trust", _trust(first)
    for row in rows:
        if row.public:
            yield "public data", public_sentence(row.public, row.public_licence)
    for row in rows:
        yield "budget", _budget(row)
    for warning in large_deltas(rows, published=True):
        yield "warning", warning
    for term, sentences_of in (("tuning", _tuning), ("mechanism", _mechanisms)):
        for row in rows:
            for sentence in sentences_of(row):
                yield term, sentence
    rounds = _once(number(row.params["rounds"]) for row in rows if "rounds" in row.params)
    if rounds:
        yield "rounds", rounds
    yield "clip", _clip(rows)
    yield "accountant", _accountant(rows)
    yield "noise", f"Gaussian, {first.noise}: {_noise_use(first)}"
    yield "not covered", "; ".join(_uncovered(first))


def _claim(row: Row) -> str:
    """Return what epsilon rests on, with a warning if it is not a theorem."""
    sentence = f"{row.claim}: {CLAIMS[row.claim]}"
    if row.drawn_claim in THEOREMS:
        return sentence
    return f"{sentence}. No (ε, δ) below is a guarantee"


def _budget(row: Row) -> str:
    """Return the epsilon that a training spent, rounded up, its target, delta, and sigma."""
    spent = (
        f"ε = {at_most(row.epsilon_spent)} (target {number(row.epsilon_target)}) at δ "
        f"= {number(row.delta)}; σ = {number(row.plan['sigma'], 5)}, one for all rounds"
    )
    if row.status == "overspent":
        return f"overspent: {spent}"
    return spent


def _mechanisms(row: Row) -> Iterator[str]:
    """Yield a sentence for each mechanism that the ledger counted.

    The noisy score of a search is left out: :func:`_tuning` describes it.
    """
    for mechanism in row.ran:
        if row.search is None or mechanism.release != SCORE:
            sentence = mechanism.sentence(row.plan["sensitivity"])
            yield f"ε = {number(row.epsilon_target)}: {sentence}"


def _clip(rows: Sequence[Row]) -> str:
    """Return to which norms contributions were clipped, and what the noise covers."""
    first = rows[0]
    norms = _once(number(row.plan["clip"]) for row in rows)
    sensitivity = first.plan["sensitivity"]
    if sensitivity == first.plan["clip"]:
        bound = f"a unit's contribution is clipped to L2 norm {norms}"
    else:
        bound = (
            f"an update is clipped to L2 norm {norms}, and replacing one unit's data changes it "
            f"by at most {number(sensitivity)}"
        )
    return f"{bound}; the noise covers {SCOPES.get(first.scope or '', first.scope)}"


def _accountant(rows: Sequence[Row]) -> str:
    """Return how epsilon was computed, by which revision of the code, and whether as planned."""
    accountants = [row.accountant for row in rows if row.accountant]
    names = _once((f"{name.upper()}, {ACCOUNTANTS[name]}" for name in accountants), "; ")
    revisions = _once(row.counted_by for row in rows if row.counted_by)
    relation = "equal to"
    if rows[0].status == "overspent":
        relation = "more than"
    return (
        f"{names}; counted from the steps that ran, and {relation} the plan that was solved "
        f"before the first; by {revisions}"
    )


def _noise_use(row: Row) -> str:
    """Return what the noise of a training permits."""
    if row.status == "overspent":
        return "less of it was added than was planned, so nothing made here may be released"
    return NOISES[row.noise]


def _external(row: Row) -> tuple[str, str]:
    """Return the term and sentence of external samples."""
    if not _is_private(row):
        return (
            "guarantee",
            "none: external samples, for which no ε is stated; nothing of them may be released "
            "as private",
        )
    budget = f"ε = {number(row.epsilon_target)} at δ = {number(row.delta)}"
    return (
        "claim",
        f"{row.claim}: external samples with {budget} (unit {row.unit}, trust {row.trust}), as "
        "stated by the author, not verified: fedsim neither counts nor checks it",
    )


def _trust(row: Row) -> str:
    """Return who may see what of a training for its epsilon to hold."""
    if _is_tuned(row):
        return (
            f"{row.trust}: somebody is trusted who sees every training and shows nobody, "
            "clients included, any but the best"
        )
    if row.trust == "aggregate" and row.noise_at == "clients":
        return (
            "aggregate, and silo as well: every client adds the full noise to its own steps, "
            "so its messages are private one by one"
        )
    return f"{row.trust}: {TRUSTS[row.trust]}"


def _tuning(row: Row) -> Iterator[str]:
    """Yield how parameters were chosen and what that cost; nothing if they were given."""
    tuning = row.tuning
    selection = row.selection
    if tuning is None:
        return
    space = ", ".join(
        f"{name} from {', '.join(map(spelled, values))}" for name, values in tuning["space"].items()
    )
    if tuning["free"] or selection is None:
        yield f"{space}: the best by scores on test rows, a search that the budget does not pay for"
        return
    yield (
        f"ε = {number(row.epsilon_target)}: the best of a random number of trainings "
        f"({tuning['distribution']}, mean {number(tuning['trials'])}), each with parameters drawn "
        f"from {space}. ε is of all of them together (Papernot & Steinke 2022); one alone is "
        "released. A secret coin holds each unit out with "
        f"probability {number(tuning['held_out'])}; best is the training that predicts most "
        "held-out units right, a number with noise of standard deviation "
        f"{number(selection['score'], 5)}"
    )
    yield f"chosen: {parameter_words(tuning['chosen'])}"


def _uncovered(row: Row) -> Iterator[str]:
    """Yield what a reader could believe to be protected and is not."""
    searched = "parameters"
    if row.unit == "example":
        yield (
            "a person with several rows (k rows are a group of k: up to k times the ε, at a "
            "larger δ)"
        )
    if row.scope not in ("joint", None):
        yield "what stays with a client (encoder, codes), which trains without noise"
    if _is_tuned(row):
        searched = "the space that was searched and of all other parameters"
        yield (
            "whoever sees a message or a score of a training that was not the best, and the "
            "number of trainings, which may not be told"
        )
    elif row.trust == "aggregate" and row.noise_at != "clients":
        yield "a server that sees single clients' messages"
    if row.noise == "secret":
        yield (
            "a second release from the same data: what all of them cost is the composition, "
            "which fedsim verify computes for a run"
        )
    else:
        yield "a release of anything from this run, whose noise is seeded"
    yield (
        "scores, references, diagnostics and label matrices of the run folder, exact functions "
        "of the real data"
    )
    yield f"the choice of {searched} after looking at them"
    yield (
        "which rows are for training, and whose they are: a split or a partition that is "
        "computed from rows is taken as given"
    )
    yield (
        "the number of classes and of clients, the number of units to within a factor of two, the "
        "encoder and all settings, which are public by assumption"
    )
    yield "attacks on the low bits of floating-point noise and on running times"
