"""The privacy statement of a method: what is protected from whom, and how ε was computed.

A statement is a list of terms (claim, unit, budget, noise, …), each with a sentence. It is printed
by ``fedsim statement`` and shown in the report page and in the card of a released data set. If ε is
a guarantee, the first term is "for a paper", a text that an author can paste into a paper. The last
term of a private method is "not covered". It lists what a reader could believe to be protected and
is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from fedsim.evidence.prove import Proof
from fedsim.privacy.accountant import AccountantName
from fedsim.privacy.plan import THEOREMS
from fedsim.privacy.selection import SCORE
from fedsim.report.names import parameter_words
from fedsim.results.columns import Row, large_deltas
from fedsim.words import at_most, number, spelled

UNITS = {
    "example": "one training example: neighbouring data sets differ in one example of one client",
    "client": "one client: its whole contribution is present or zero; the number of clients is "
    "public",
}
"""When two data sets are neighbours, by the unit of protection."""
TRUSTS = {
    "aggregate": "the adversary sees only the sum over clients (secure aggregation or a trusted "
    "server); noise is added once to the sum",
    "silo": "the adversary sees every message; each client adds the full noise to its own messages",
}
"""Who sees what, by the trust of a setting."""
NOISES = {
    "seeded": "it is computed from a seed that is written in the results. This measures what "
    "privacy costs; nothing made here may be released",
    "secret": "it comes from AES-256 under a random key that is not kept. A generator may be "
    "released under its ε if its claim is proved, or if it is stated and has passed a full fedsim "
    "check",
}
"""What the randomness of the noise permits, by the kind of noise."""
CLAIMS = {
    "proved": "(ε, δ) is a theorem for this method",
    "stated": "the method's author states that (ε, δ) is a theorem, and that the loss or statistic "
    "is computed per example",
    "heuristic": "(ε, δ) is computed for the noise that was added, but is not a theorem for this "
    "method",
    "none": "no privacy is claimed",
}
"""What an epsilon rests on, by the claim."""
CHECKS = {
    "passed": "a full fedsim check of this code with these parameters (numbers of rounds and steps "
    "may differ) found no fault on small data sets. It looks for mistakes, not for malice, and "
    "proves nothing",
    "failed": "a fedsim check of this code found a fault in what the claim rests on",
    None: "no full fedsim check of this code with these parameters has passed",
}
"""How the check of a method's code ended, by the column ``check`` of a result."""
SCOPES = {
    "joint": "everything that depends on a unit",
    "shared": "the shared parameters only",
    "hypernetwork": "the hypernetwork only, and synthesis uses codes that are drawn, not trained",
}
"""What the noise covers, by the scope of a plan."""
ACCOUNTANTS: dict[AccountantName, str] = {
    "prv": "numerical composition of privacy loss random variables (Gopi, Lee & Wutschitz 2021, "
    "theorem 5.5; Opacus), an upper bound",
    "rdp": "Rényi composition (Mironov, Talwar & Zhang 2019; conversion of Balle et al. 2020), "
    "an upper bound",
}
"""How epsilon is computed, by the accountant."""
_CITED_UNITS = {
    "example": "one training example",
    "client": "the data of one client",
}
"""In what neighbouring data sets differ, in the sentence for a paper."""
_CITED_TRUSTS = {
    "aggregate": "only the sum of the clients' messages",
    "silo": "every message of every client",
}
"""What the adversary sees, in the sentence for a paper."""
_CITED_ACCOUNTANTS: dict[AccountantName, str] = {
    "prv": "the PRV accountant (Gopi, Lee & Wutschitz, 2021)",
    "rdp": "Rényi differential privacy (Mironov, Talwar & Zhang, 2019)",
}
"""How epsilon was computed, in the sentence for a paper."""
_UNPROVED = {
    "differs": "one of its results contradicts itself",
    "not proved": "one of its results is not proved",
}
"""Why a method has no guarantee, by the verdict of ``fedsim verify`` on one of its results."""
_SETTING = attrgetter(
    "unit",
    "trust",
    "claim",
    "check",
    "scope",
    "noise",
    "status",
)
"""The columns of a private result's setting: results that differ in one have two statements."""


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
        "one group: neighbouring data sets differ in all examples of one client that have the same "
        f"value of {unit}, whatever their number"
    )
    return UNITS.get(unit, of_column)


def statements(
    rows: Sequence[Row], proofs: Sequence[Proof] = (), only: Collection[str] | None = None
) -> list[Statement]:
    """Return one statement for each method, or several if its private results differ in setting.

    Two private results have the same setting if they agree in the columns of :data:`_SETTING`.
    Results that failed, are unaccounted or are refuted are left out. A method without other
    results, or with a result that ``fedsim verify`` did not prove, has one statement, which says
    that there is no guarantee.

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
    refuted = {(row.label, row.unit, row.trust): row for row in rows if row.refuted}
    asked = [row for row in rows if only is None or row.cell_id in only]
    valid = [row for row in asked if row.status in ("ok", "overspent")]
    stated = []
    for group in _settings([row for row in valid if row.label not in unproved]):
        first = group[0]
        refuted_row = refuted.get((first.label, first.unit, first.trust))
        stated.append(_statement(group, refuted_row))
    labels = {statement.method for statement in stated}
    for label in dict.fromkeys(row.label for row in asked if row.label not in labels):
        results = [row for row in rows if row.label == label]
        why = _why_no_guarantee(results, unproved.get(label))
        stated.append(
            Statement(
                label,
                (("guarantee", f"none: {why}"),),
            )
        )
    return stated


def _why_no_guarantee(rows: Sequence[Row], unproved: Proof | None) -> str:
    """Return why a method has no guarantee; of several reasons, the one that says most against it.

    Args:
        rows: All results of the method.
        unproved: The verdict on a result that ``fedsim verify`` did not prove, if there is one.
    """
    if any(row.refuted for row in rows):
        return "an audit refutes its claim"
    if unproved is not None:
        return f"{_UNPROVED[unproved.verdict]}: {unproved.why}"
    if any(row.status == "unaccounted" for row in rows):
        return "what ran differs from what was planned, so its ε is not known"
    return "no experiment with it has finished"


def _settings(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the results in groups, one group for each statement.

    The private results of a method are grouped by their setting (:data:`_SETTING`), and its other
    results are left out. Without a private result, all results of a method are one group.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.label,)
        if row.is_private:
            key += _SETTING(row)
        groups.setdefault(key, []).append(row)
    private = {row.label for row in rows if row.is_private}
    return [
        group for group in groups.values() if group[0].is_private or group[0].label not in private
    ]


def _statement(rows: Sequence[Row], refuted: Row | None) -> Statement:
    """Return the statement of results of one setting, in which equal sentences occur once.

    Args:
        rows: The results.
        refuted: A result of the same method, unit and trust that an audit refutes, if any.
    """
    if rows[0].is_external:
        parts = [_external(row) for row in rows]
    elif rows[0].is_private:
        parts = list(_private_parts(rows))
        if refuted is None:
            parts = [*_for_a_paper(rows), *parts]
    else:
        parts = [("guarantee", _no_guarantee(rows[0]))]
    if refuted is not None:
        words = f"an audit refutes the claim at ε = {number(refuted.epsilon_target)}"
        if refuted.audited_form:
            words += f", {refuted.audited_form}"
        parts.append(("audit", f"{words}: no (ε, δ) here is a guarantee"))
    return Statement(rows[0].label, tuple(dict.fromkeys(parts)))


def _is_tuned(row: Row) -> bool:
    """Return whether a result's budget paid for a search of parameters."""
    return row.tuning is not None and not row.tuning["free"]


def _once(texts: Iterable[str], separator: str = ", ") -> str:
    """Return some texts joined, without repetitions."""
    return separator.join(dict.fromkeys(texts))


def _no_guarantee(row: Row) -> str:
    """Return the sentence of a method that added no noise."""
    reason = "the method adds no noise, so it has no ε"
    if row.epsilon_target is not None:
        reason = "it ran without noise (ε = ∞)"
    return f"none: {reason}; nothing that it makes may be released as private"


def _for_a_paper(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield the sentences by which a paper cites ε, if ε is a guarantee.

    Args:
        rows: Private results of one setting.
    """
    first = rows[0]
    if first.drawn_claim not in THEOREMS or first.status != "ok":
        return
    epsilons = _once((number(row.epsilon_target) for row in rows), " or ")
    deltas = _once((number(row.delta) for row in rows), " or ")
    group = f"the examples of one client with one value of {first.unit}"
    unit = _CITED_UNITS.get(first.unit, group)
    seen = _CITED_TRUSTS[first.trust]
    if _is_tuned(first):
        seen = "the released training only, which is the best one of a private search"
    accountants = _once(_CITED_ACCOUNTANTS[row.accountant] for row in rows if row.accountant)
    subject = first.label
    if first.claim == "stated":
        subject = f"According to its author, {first.label}"
    sentences = [
        f"{subject} satisfies (ε, δ)-differential privacy with ε = {epsilons} and δ = {deltas}.",
        f"Neighbouring data sets differ in {unit} (add or remove).",
        f"The adversary sees {seen}.",
        f"ε was computed with {accountants} from the steps that were run.",
    ]
    if first.noise == "seeded":
        sentences.append("The noise was simulated from a known seed, and nothing was released.")
    yield "for a paper", " ".join(sentences)


def _private_parts(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield the terms and sentences of private results of one setting."""
    first = rows[0]
    yield "claim", _claim(first)
    if first.check or first.claim == "stated":
        yield "check", CHECKS[first.check]
    yield "unit", unit_words(first.unit or "example")
    yield "relation", f"{first.relation}: one of two neighbouring data sets has one unit more"
    yield "trust", _trust(first)
    for row in rows:
        if row.public:
            licence = row.public_licence or "not known"
            yield (
                "public data",
                f"{row.public} (licence: {licence}): ε does not protect these examples, and what "
                "is computed from them alone costs no ε",
            )
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
    bounds = _once(map(_clip, rows), "; ")
    yield "clip", f"{bounds}; the noise covers {SCOPES.get(first.scope, first.scope)}"
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
        f"= {number(row.delta)}; the noise multiplier of each mechanism is a fixed multiple of σ = "
        f"{number(row.plan['sigma'], 5)}"
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


def _clip(row: Row) -> str:
    """Return to which norm contributions were clipped, and how much one unit changes an update."""
    norm = number(row.plan["clip"])
    sensitivity = row.plan["sensitivity"]
    if sensitivity == row.plan["clip"]:
        return f"a unit's contribution is clipped to L2 norm {norm}"
    return (
        f"an update is clipped to L2 norm {norm}, and one unit changes it by at most "
        f"{number(sensitivity)}"
    )


def _accountant(rows: Sequence[Row]) -> str:
    """Return how epsilon was computed, if it is the planned one, and which code computed it."""
    accountants = [row.accountant for row in rows if row.accountant]
    names = _once(
        (f"{name.upper()}, {ACCOUNTANTS[name]}" for name in accountants),
        "; ",
    )
    revisions = _once(row.counted_by for row in rows if row.counted_by)
    relation = "equal to"
    if rows[0].status == "overspent":
        relation = "larger than"
    return (
        f"{names}. ε is counted from the steps that ran, and is {relation} the ε that was planned "
        f"before the training. Code: {revisions}"
    )


def _noise_use(row: Row) -> str:
    """Return what the noise of a training permits."""
    if row.status == "overspent":
        return "less noise was added than planned, so nothing made here may be released"
    return NOISES[row.noise]


def _external(row: Row) -> tuple[str, str]:
    """Return the term and sentence of external samples."""
    if not row.is_private:
        return (
            "guarantee",
            "none: external samples without a stated ε; nothing of them may be released as private",
        )
    budget = f"ε = {number(row.epsilon_target)} at δ = {number(row.delta)}"
    return (
        "claim",
        f"{row.claim}: external samples with {budget} (unit {row.unit}, trust {row.trust}), as "
        "stated by the author, not verified: fedsim neither counts nor checks it",
    )


def _trust(row: Row) -> str:
    """Return who may see which messages of a training if its epsilon is to hold."""
    if _is_tuned(row):
        return (
            f"{row.trust}: a trusted party sees every training of the search and shows only the "
            "best one to anybody, clients included"
        )
    if row.trust == "aggregate" and row.noise_at == "clients":
        return (
            "aggregate and silo: every client adds the full noise to its own steps, so each "
            "message is private by itself"
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
        yield f"{space}: the values with the best score on test data; ε does not cover this search"
        return
    yield (
        f"ε = {number(row.epsilon_target)}: the best of a random number of trainings "
        f"({tuning['distribution']}, mean {number(tuning['trials'])}), each with parameters drawn "
        f"from {space}. ε covers all trainings together (Papernot & Steinke 2022), and only the "
        "best one is released. Each unit is held out with probability "
        f"{number(tuning['held_out'])}, in secret. The best training predicts the most held-out "
        "units correctly; noise of standard deviation "
        f"{number(selection['score'], 5)} is added to that number"
    )
    yield f"ε = {number(row.epsilon_target)}: chosen {parameter_words(tuning['chosen'])}"


def _uncovered(row: Row) -> Iterator[str]:
    """Yield what a reader could believe to be protected and is not."""
    choices = "parameters"
    if row.unit == "example":
        yield (
            "a person with several examples (k examples are a group of k: up to k times the ε, at "
            "a larger δ)"
        )
    if row.scope not in ("joint", None):
        yield "what stays with a client (encoder, codes), which is trained without noise"
    if _is_tuned(row):
        choices = "the search space and of all other parameters"
        yield (
            "anybody who sees a message or a score of a training that was not the best, and the "
            "number of trainings, which must not be published"
        )
    elif row.trust == "aggregate" and row.noise_at != "clients":
        yield "a server that sees single clients' messages"
    if row.noise == "secret":
        yield (
            "a second release from the same data: the cost of all releases is their composition, "
            "which fedsim verify computes for a run"
        )
    else:
        yield "a release of anything from this run, because its noise is seeded"
    yield (
        "scores, references, diagnostics and label matrices of the run folder, which are computed "
        "from the real data without noise"
    )
    if row.has_validation:
        yield (
            "the validation examples: the weight of personal scores was chosen on them without "
            "noise, and ε covers neither that nor which examples they are"
        )
    yield f"the choice of {choices} after looking at such scores or diagnostics"
    yield "the choice of training examples and of their clients, if it depends on the examples"
    yield (
        "the number of classes and of clients, the number of units to within a factor of two, the "
        "encoder and all settings, which are public by assumption"
    )
    yield "attacks on the low bits of floating-point noise and on running times"
