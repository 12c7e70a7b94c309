"""The privacy statement of a method: what is protected from whom, by what, counted how, and what is
not covered.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.evidence.prove import Proof
from fedsim.privacy.plan import THEOREMS
from fedsim.privacy.selection import SCORE
from fedsim.results.columns import Row, large_deltas
from fedsim.words import at_most, number, spelled

UNITS = {
    "example": "one training example: neighbouring data sets differ in one example of one client",
    "client": "one client: what it contributes is there or is zero; the number of clients stays a "
    "public divisor",
}
TRUSTS = {
    "aggregate": "only the sum over clients is seen (secure aggregation or a trusted "
    "server), noise "
    "is added once to it",
    "silo": "every client's message is private by itself, each carries the full noise",
}
NOISES = {
    "seeded": "it follows from a seed that stands in the results: this measures what a method "
    "costs, nothing made here may be released",
    "secret": "AES-256 under a random key that is kept nowhere; a generator whose claim is a "
    "theorem may be released under its ε",
}
CLAIMS = {
    "proved": "(ε, δ) is a theorem for this method",
    "stated": "(ε, δ) is a theorem by its author's word, also that the loss or statistic is per "
    "example",
    "heuristic": "(ε, δ) is computed for the noise that was added, but is not a theorem for this "
    "method",
    "none": "no privacy is claimed",
}
CHECKS = {
    "passed": "a full fedsim check of this code with these parameters, but for numbers of rounds "
    "and steps, found no fault on small data sets; it looks for mistakes, not for malice, and "
    "proves nothing",
    "failed": "a fedsim check of this code found a fault in what the claim rests on",
    None: "no full fedsim check of this code with these parameters has passed",
}
"""How the check of a row ended, in words."""
SCOPES = {
    "joint": "everything that depends on a unit",
    "shared": "the shared parameters alone",
    "hypernetwork": "the hypernetwork alone",
}
ACCOUNTANTS = {
    "prv": "numerical composition of privacy loss random variables (Gopi, Lee & Wutschitz 2021, "
    "theorem 5.5; Opacus), an upper bound",
    "rdp": "Rényi composition (Mironov, Talwar & Zhang 2019; conversion of Balle et al. 2020), "
    "an upper bound",
}


@dataclass(frozen=True)
class Statement:
    """What is said of one method under one unit, trust, claim and kind of noise: its label, and
    sentences by what they are about.
    """

    method: str
    parts: tuple[tuple[str, str], ...]

    @property
    def lines(self) -> Iterator[str]:
        """The statement as plain text."""
        yield self.method
        yield from (f"  {term}: {text}" for term, text in self.parts)


def unit_words(unit: str) -> str:
    """What a unit is, in words."""
    of_column = (
        "one group: neighbouring data sets differ in all rows of one client that have one "
        f"value of {unit}, however many they are"
    )
    return UNITS.get(unit, of_column)


def public_sentence(name: str | None, licence: str | None) -> str:
    """What public rows are to a reader of the budget."""
    free = "no unit's rows; what is made of them alone costs nothing, and ε does not protect them"
    return f"{name} (licence: {licence or 'not known'}): {free}"


def statements(
    rows: Sequence[Row], proofs: Sequence[Proof] = (), only: Collection[str] | None = None
) -> list[Statement]:
    """A statement for every method of the rows, and for each unit, trust, claim and noise that it
    ran under.

    Rows that failed, are unaccounted or refuted have no part in one; a method that has no others
    has a statement of that. A method of which one of ``proofs``, of all rows in their order, is no
    proof has no guarantee. With ``only``, cells of these ids are stated; what the other rows
    say against their methods counts all the same.
    """
    wrong = {proof.row.label: proof for proof in reversed(proofs) if proof.verdict in _UNPROVED}
    refuted = {(row.label, row.unit, row.trust): row for row in rows if row.status == "refuted"}
    asked = [row for row in rows if only is None or row.cell_id in only]
    settings: dict[tuple[object, ...], list[Row]] = {}
    for row in asked:
        if row.status in ("ok", "overspent") and row.label not in wrong:
            facts: tuple[Any, ...] = ()
            if _is_private(row):
                facts = (
                    row.unit,
                    row.trust,
                    row.claim,
                    row.check,
                    row.scope,
                    row.noise,
                    row.status,
                )
            settings.setdefault((row.label, *facts), []).append(row)
    private = {label for label, *rest in settings if rest}
    stated = []
    for (label, *rest), members in settings.items():
        if not rest and label in private:
            continue  # a method that ran at infinity beside finite budgets is stated once
        parts = list(_parts(members))
        if (audited := refuted.get((label, members[0].unit, members[0].trust))) is not None:
            what = ", ".join(
                filter(None, ("one refutes the claim at another budget", audited.audited_form))
            )
            parts.append(("audit", f"{what}: no (ε, δ) here is a guarantee"))
        stated.append(Statement(members[0].label, tuple(dict.fromkeys(parts))))
    missing = {
        row.label: row.status for row in asked if row.label not in {each.method for each in stated}
    }
    none = {
        label: f"{_UNPROVED[wrong[label].verdict]}: {wrong[label].why}"
        if label in wrong
        else _NONE[missing[label]]
        for label in missing
    }
    return stated + [
        Statement(label, (("guarantee", f"none: {why}"),)) for label, why in none.items()
    ]


_NONE = {
    "failed": "no cell of it has finished",
    "unaccounted": "what ran is not what was planned, so nothing is known of its ε",
    "refuted": "an audit refutes what it claims",
}
"""Why there is nothing to state."""
_UNPROVED = {"differs": "a row of it contradicts itself", "not proved": "a row of it is not proved"}
"""What a verdict of ``fedsim verify`` says against a method."""


def _is_private(row: Row) -> bool:
    return row.epsilon_target is not None and math.isfinite(row.epsilon_target)


def _is_tuned(row: Row) -> bool:
    """Whether its budget paid for a search."""
    return row.tuning is not None and not row.tuning["free"]


def _parts(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The sentences of rows of one setting; equal ones are said once."""
    row = rows[0]
    overspent = rows[0].status == "overspent"
    if row.is_external:
        yield from map(_external, rows)
        return
    if not _is_private(row):
        if row.epsilon_target is not None:
            what = "it ran without noise (ε = ∞)"
        else:
            what = "it adds no noise, and ε has no meaning for it"
        yield "guarantee", f"none: {what}; nothing that it makes may be released as private"
        return
    claim = f"{row.claim}: {CLAIMS[row.claim]}"
    if row.drawn_claim not in THEOREMS:
        claim += ". No (ε, δ) below is a guarantee"
    yield "claim", claim
    if row.check or row.claim == "stated":
        yield "check", CHECKS[row.check]
    yield "unit", unit_words(row.unit or "example")
    yield "relation", f"{row.relation}: neighbours differ in the presence of one unit"
    yield "trust", _trust(row)
    yield from (
        ("public data", public_sentence(each.public, each.public_licence))
        for each in rows
        if each.public
    )
    for each in rows:
        sigma = f"σ = {number(each.plan['sigma'], 5)}, one for all rounds"
        spent = (
            f"ε = {at_most(each.epsilon_spent)} (target {number(each.epsilon_target)}) at δ "
            f"= {number(each.delta)}; {sigma}"
        )
        yield "budget", f"overspent: {spent}" if overspent else spent
    yield from (("warning", line) for line in large_deltas(rows, published=True))
    yield from (("tuning", line) for each in rows for line in _tuning(each))
    for each in rows:
        for mechanism in each.ran:
            if each.search is None or mechanism.release != SCORE:  # the search says its own
                yield (
                    "mechanism",
                    f"ε = {number(each.epsilon_target)}: "
                    f"{mechanism.sentence(each.plan['sensitivity'])}",
                )
    if rounds := dict.fromkeys(
        number(each.params["rounds"]) for each in rows if "rounds" in each.params
    ):
        yield "rounds", ", ".join(rounds)
    clips = ", ".join(dict.fromkeys(number(each.plan["clip"]) for each in rows))
    what = f"a unit's contribution is clipped to L2 norm {clips}"
    if row.plan["sensitivity"] != row.plan["clip"]:
        moved = f"replacing one unit's data changes it by at most {number(row.plan['sensitivity'])}"
        what = f"an update is clipped to L2 norm {clips}, and {moved}"
    yield "clip", f"{what}; the noise covers {SCOPES.get(row.scope or '', row.scope)}"
    accountants = "; ".join(
        dict.fromkeys(
            f"{each.accountant.upper()}, {ACCOUNTANTS[each.accountant]}"
            for each in rows
            if each.accountant
        )
    )
    counted = ", ".join(dict.fromkeys(each.counted_by for each in rows if each.counted_by))
    planned = (
        f"{'more than' if overspent else 'equal to'} the plan that was solved before the first"
    )
    yield (
        "accountant",
        f"{accountants}; counted from the steps that ran, and {planned}; by {counted}",
    )
    if overspent:
        use = "less of it was added than was planned, so nothing made here may be released"
    else:
        use = NOISES[row.noise]
    yield "noise", f"Gaussian, {row.noise}: {use}"
    yield "not covered", "; ".join(_uncovered(row))


def _external(row: Row) -> tuple[str, str]:
    """The sentence of external samples."""
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
    """How parameters were chosen, and what that cost."""
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
    law = tuning["distribution"]
    mean = number(tuning["trials"])
    held_out = number(tuning["held_out"])
    yield (
        f"ε = {number(row.epsilon_target)}: the best of a random number of trainings ({law}, "
        f"mean {mean}), each with parameters drawn from "
        f"{space}. ε is of all of them together (Papernot & Steinke 2022); one alone is "
        "released. A secret coin holds each unit out with "
        f"probability {held_out}; best is the training that predicts most held-out units "
        "right, a number with noise of standard deviation "
        f"{number(selection['score'], 5)}"
    )
    yield (
        "chosen: "
        f"{', '.join(f'{name} {spelled(value)}' for name, value in tuning['chosen'].items())}"
    )


def _uncovered(row: Row) -> Iterator[str]:
    """What a reader could take for covered and is not."""
    tuned = _is_tuned(row)
    if row.unit == "example":
        yield (
            "a person with several rows (k rows are a group of k: up to k times the ε, at a "
            "larger δ)"
        )
    if row.scope not in ("joint", None):
        yield "what stays with a client (encoder, codes), which trains without noise"
    if tuned:
        yield (
            "whoever sees a message or a score of a training that was not the best, and the "
            "number of trainings, which may not be told"
        )
    elif row.trust == "aggregate" and row.noise_at != "clients":
        yield "a server that sees single clients' messages"
    if row.noise != "secret":
        yield "a release of anything from this run, whose noise is seeded"
    else:
        yield (
            "a second release from the same data: what all of them cost is the composition, "
            "which fedsim verify computes for a run"
        )
    yield (
        "scores, references, diagnostics and label matrices of the run folder, exact functions "
        "of the real data"
    )
    yield (
        "the choice of "
        f"{'the space that was searched and of all other parameters' if tuned else 'parameters'} "
        "after looking at them"
    )
    yield (
        "which rows are for training, and whose they are: a split or a partition that is "
        "computed from rows is taken as given"
    )
    yield (
        "the number of classes and of clients, the encoder and all settings, which are public "
        "by assumption"
    )
    yield "attacks on the low bits of floating-point noise and on running times"
