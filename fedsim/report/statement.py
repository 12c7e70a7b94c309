"""The privacy statement of a method: what is protected from whom, by what, counted how, and what is not covered."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from fedsim.evidence.prove import Proof
from fedsim.privacy.plan import THEOREMS
from fedsim.privacy.selection import SCORE
from fedsim.report.tables import latex_text
from fedsim.results.columns import Row, large_deltas
from fedsim.words import Printed, at_most, number, print_line, spelled

UNITS = {
    "example": "one training example: neighbouring data sets differ in one example of one client",
    "client": "one client: what it contributes is there or is zero; the number of clients stays a public divisor",
}
TRUSTS = {
    "aggregate": "only the sum over clients is seen (secure aggregation or a trusted server), noise is added once to it",
    "silo": "every client's message is private by itself, each carries the full noise",
}
NOISES = {
    "seeded": "it follows from a seed that stands in the results: this measures what a method costs, nothing made here may be released",
    "secret": "AES-256 under a random key that is kept nowhere; a generator whose claim is a theorem may be released under its ε",
}
CLAIMS = {
    "proved": "(ε, δ) is a theorem for this method",
    "stated": "(ε, δ) is a theorem by its author's word, also that the loss or statistic is per example",
    "heuristic": "(ε, δ) is computed for the noise that was added, but is not a theorem for this method",
    "none": "no privacy is claimed",
}
CHECKS = {
    "passed": "a full fedsim check of this code and these parameters passed, which looks for faults and does not prove that there is none",
    "failed": "a fedsim check of this code found a fault in what the claim rests on",
    None: "no full fedsim check of this code and these parameters stands behind it",
}
"""How the check of a row ended, in words."""
ACCOUNTANTS = {
    "prv": "numerical composition of privacy loss random variables (Gopi, Lee & Wutschitz 2021, theorem 5.5; Opacus), an upper bound",
    "rdp": "Rényi composition (Mironov, Talwar & Zhang 2019; conversion of Balle et al. 2020), an upper bound",
}


@dataclass(frozen=True, repr=False)
class Statement(Printed):
    """What is said of one method under one unit, trust, claim and kind of noise.

    Attributes:
        method: its label.
        parts: what each sentence is about, and the sentence.
    """

    method: str
    parts: tuple[tuple[str, str], ...]

    @property
    def lines(self) -> Iterator[str]:
        """The statement as plain text."""
        yield self.method
        yield from (f"  {term}: {text}" for term, text in self.parts)

    @property
    def latex(self) -> str:
        """The statement as a paragraph and a list of an appendix."""
        items = "\n".join(rf"\item[{latex_text(term)}] {latex_text(words)}." for term, words in self.parts)
        return rf"\paragraph{{Privacy of {latex_text(self.method)}}}" f"\n\\begin{{description}}\n{items}\n\\end{{description}}"

    def show(self, console: Console) -> None:
        """Print the statement."""
        for line in self.lines:
            print_line(console, line)


def unit_words(unit: str) -> str:
    """What a unit is, in words."""
    return UNITS.get(
        unit, f"one group: neighbouring data sets differ in all rows of one client that have one value of {unit}, however many they are"
    )


def statements(rows: Sequence[Row], proofs: Sequence[Proof] = (), only: Collection[str] | None = None) -> list[Statement]:
    """A statement for every method of the rows, and for each unit, trust, claim and noise that it ran under.

    Rows that failed, are unaccounted or refuted have no part in one; a method that has no others has a statement of that. A method of which
    one of ``proofs``, of all rows in their order, finds a difference has no guarantee. With ``only``, cells of these ids are stated; what
    the other rows say against their methods counts all the same.
    """
    wrong: dict[str, dict[str, None]] = {}
    for proof in proofs:
        if proof.verdict == "differs":
            wrong.setdefault(proof.row.label, {})[proof.why] = None
    notes = {proof.row.cell_id: proof.why for proof in proofs if proof.verdict in ("proved", "not proved") and proof.why}
    by_setting: dict[tuple[object, ...], list[Row]] = {}
    asked = [row for row in rows if only is None or row.cell_id in only]
    for row in asked:
        if row.status in ("ok", "overspent") and row.label not in wrong:
            key = (
                row.label,
                *((row.unit, row.trust, row.claim, row.check, row.scope, row.noise, row.status) if _is_private(row) else (None,)),
            )
            by_setting.setdefault(key, []).append(row)
    private_labels = {row.label for members in by_setting.values() for row in members if _is_private(row)}
    refuted = {_claimed(row): row for row in rows if row.status == "refuted"}
    # a method that ran at infinity beside finite budgets is stated once
    stated = [
        Statement(
            members[0].label,
            (
                *_parts(members),
                *(("plan", note) for note in dict.fromkeys(notes[row.cell_id] for row in members if row.cell_id in notes)),
                *_audit(refuted.get(_claimed(members[0]))),
            ),
        )
        for members in by_setting.values()
        if _is_private(members[0]) or members[0].label not in private_labels
    ]
    methods = {each.method for each in stated}
    without = {
        row.label: _contradicted(wrong[row.label]) if row.label in wrong else _NONE[row.status] for row in asked if row.label not in methods
    }
    return stated + [Statement(label, (("guarantee", f"none: {why}"),)) for label, why in without.items()]


_NONE = {
    "failed": "no cell of it has finished",
    "unaccounted": "what ran is not what was planned, so nothing is known of its ε",
    "refuted": "an audit refutes what it claims",
}
"""Why there is nothing to state."""


def _audit(refuted: Row | None) -> Iterator[tuple[str, str]]:
    """What an audit says of the claim of ``refuted``, a row of another budget."""
    if refuted is not None:
        what = ", ".join(filter(None, ("one refutes the claim at another budget", refuted.audited_form)))
        yield "audit", f"{what}: no (ε, δ) here is a guarantee"


def _contradicted(sentences: Iterable[str]) -> str:
    first, *more = sentences
    return f"a row of it contradicts itself: {first}" + (f" (and {len(more)} more)" if more else "")


def _claimed(row: Row) -> tuple[str | None, ...]:
    return row.label, row.unit, row.trust


def _is_private(row: Row) -> bool:
    return row.epsilon_target is not None and math.isfinite(row.epsilon_target)


def _parts(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    row = rows[0]
    if not _is_private(row):
        what = "it ran without noise (ε = ∞)" if row.epsilon_target is not None else "it adds no noise, and ε has no meaning for it"
        yield "guarantee", f"none: {what}; nothing that it makes may be released as private"
        return
    void = "" if row.drawn_claim in THEOREMS else ". No (ε, δ) below is a guarantee"
    yield "claim", f"{row.claim}: {CLAIMS.get(row.claim or '', '')}{void}"
    if row.check or row.claim == "stated":
        yield "check", CHECKS[row.check]
    yield "unit", unit_words(row.unit or "example")
    yield "relation", f"{row.relation}: neighbours differ in the presence of one unit"
    yield "trust", _trust(row)
    for public in dict.fromkeys((member.public, member.public_licence) for member in rows if member.public):
        yield "public data", public_sentence(*public)
    for line in dict.fromkeys(map(_budget, rows)):
        yield "budget", line
    for line in large_deltas(rows):
        yield "warning", line
    for line in dict.fromkeys(line for member in rows for line in _tuning(member)):
        yield "tuning", line
    for line in dict.fromkeys(line for member in rows for line in _mechanisms(member)):
        yield "mechanism", line
    rounds = ", ".join(dict.fromkeys(number(member.params["rounds"]) for member in rows if "rounds" in member.params))
    yield from [("rounds", rounds)] if rounds else []
    clips = ", ".join(dict.fromkeys(number(member.plan["clip"]) for member in rows))
    scopes = {
        "joint": "everything that depends on a unit",
        "shared": "the shared parameters alone",
        "hypernetwork": "the hypernetwork alone",
    }
    what = f"a unit's contribution is clipped to L2 norm {clips}"
    if row.plan["sensitivity"] != row.plan["clip"]:
        moved = f"replacing one unit's data changes it by at most {number(row.plan['sensitivity'])}"
        what = f"an update is clipped to L2 norm {clips}, and {moved}"
    yield "clip", f"{what}; the noise covers {scopes.get(row.scope or '', row.scope)}"
    names = [name for name in dict.fromkeys(member.accountant for member in rows) if name]
    counted = ", ".join(dict.fromkeys(member.counted_by for member in rows if member.counted_by))
    accountants = "; ".join(f"{name.upper()}, {ACCOUNTANTS.get(name, '')}" for name in names)
    overspent = row.status == "overspent"
    planned = "more than the plan that was solved before the first" if overspent else "equal to the plan that was solved before the first"
    yield "accountant", f"{accountants}; counted from the steps that ran, and {planned}; by {counted}"
    use = "less of it was added than was planned, so nothing made here may be released" if overspent else NOISES[row.noise]
    yield "noise", f"Gaussian, {row.noise}: {use}"
    yield "not covered", "; ".join(_uncovered(row))


def public_sentence(name: str | None, licence: str | None) -> str:
    """What public rows are to a reader of the budget."""
    return (
        f"{name} (licence: {licence or 'not known'}): no unit's rows; what is made of them alone costs nothing, and ε does not protect them"
    )


def _trust(row: Row) -> str:
    if _is_tuned(row):
        return f"{row.trust}: somebody is trusted who sees every training and shows nobody, clients included, any but the best"
    if row.trust == "aggregate" and row.noise_at == "clients":
        return "aggregate, and silo as well: every client adds the full noise to its own steps, so its messages are private one by one"
    return f"{row.trust}: {TRUSTS[row.trust]}"


def _is_tuned(row: Row) -> bool:
    """Whether its budget paid for a search."""
    return row.tuning is not None and not row.tuning["free"]


def _budget(row: Row) -> str:
    spent = "overspent: " if row.status == "overspent" else ""
    sigma = f"σ = {number(row.plan['sigma'], 5)}, one for all rounds"
    return f"{spent}ε = {at_most(row.epsilon_spent)} (target {number(row.epsilon_target)}) at δ = {number(row.delta)}; {sigma}"


def _tuning(row: Row) -> Iterator[str]:
    """How parameters were chosen, and what that cost."""
    tuning, selection = row.tuning, row.selection
    if tuning is None:
        return
    space = ", ".join(f"{name} from {', '.join(map(spelled, values))}" for name, values in tuning["space"].items())
    if tuning["free"] or selection is None:
        yield f"{space}: the best by scores on test rows, a search that the budget does not pay for"
        return
    target = f"ε = {number(row.epsilon_target)}"
    law, mean, held_out = tuning["distribution"], number(tuning["trials"]), number(tuning["held_out"])
    yield (
        f"{target}: the best of a random number of trainings ({law}, mean {mean}), each with parameters drawn from {space}. ε is of all of "
        "them together (Papernot & Steinke 2022); one alone is released"
    )
    yield (
        f"{target}: a secret coin holds each unit out with probability {held_out}; best is the training that predicts most held-out units "
        f"right, a number with noise of standard deviation {number(selection['score'], 5)}"
    )
    yield f"chosen: {', '.join(f'{name} {spelled(value)}' for name, value in tuning['chosen'].items())}"


def _mechanisms(row: Row) -> Iterator[str]:
    target = f"ε = {number(row.epsilon_target)}"
    for mechanism in row.ran:
        if row.search is None or mechanism.release != SCORE:  # the search says its own
            yield f"{target}: {mechanism.sentence(row.plan['sensitivity'])}"


def _uncovered(row: Row) -> Iterator[str]:
    """What a reader could take for covered and is not."""
    if row.unit == "example":
        yield "a person with several rows (k rows are a group of k: up to k times the ε, at a larger δ)"
    if row.scope not in ("joint", None):
        yield "what stays with a client (encoder, codes), which trains without noise"
    if _is_tuned(row):
        yield "whoever sees a message or a score of a training that was not the best"
    elif row.trust == "aggregate" and row.noise_at != "clients":
        yield "a server that sees single clients' messages"
    if row.noise != "secret":
        yield "a release of anything from this run, whose noise is seeded"
    else:
        yield "a second release from the same data: what all of them cost is the composition, which fedsim verify computes for a run"
    yield "scores, references, diagnostics and label matrices of the run folder, exact functions of the real data"
    tuned = _is_tuned(row)
    yield f"the choice of {'the space that was searched and of all other parameters' if tuned else 'parameters'} after looking at them"
    yield from ["the number of trainings, which may not be told"] if tuned else []
    yield "which rows are for training, and whose they are: a split or a partition that is computed from rows is taken as given"
    yield "the number of classes and of clients, the encoder and all settings, which are public by assumption"
    yield "attacks on the low bits of floating-point noise and on running times"
