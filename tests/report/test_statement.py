import math
import re
from typing import Any

import pytest
from rows import NOISE, changed, make_failed, make_row

from fedsim.evidence.prove import Proof, Verdict
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.statement import statements
from fedsim.results.columns import Row

SEARCH = {
    "space": {"clip": (1, 2)},
    "trials": 10,
    "distribution": "geometric",
    "free": False,
    "held_out": 0.1,
    "chosen": {"clip": 1},
    "trained": 2,
}
"""How a search chose the parameters of a result."""
AUDITED = {"audit_pairs": 30, "audit_epsilon_lower": 11.2, "audit_canary_ratio": 1.0}
"""The columns of an audit that refutes an ε of 4, but not of 12."""


def stated(*rows: Row) -> dict[str, str]:
    return {each.method: "\n".join(each.lines) for each in statements(rows)}


def test_method_has_one_statement_with_a_line_per_budget() -> None:
    rows = [
        make_row(cell_id=f"{epsilon}{seed}", epsilon_target=epsilon, seed=seed)
        for epsilon in (1.0, 4.0)
        for seed in (0, 1)
    ]
    found = stated(*rows, make_row(cell_id="inf", epsilon_target=math.inf))
    assert list(found) == ["fedhypevae"]
    assert found["fedhypevae"].count("budget: ε =") == 2
    assert "target 4" in found["fedhypevae"]


def test_statement_says_where_noise_is_added() -> None:
    at_sum, at_clients = (make_row(noise_at=place, label=place) for place in ("sum", "clients"))
    found = stated(at_sum, at_clients)
    assert "noise is added once to the sum" in found["sum"]
    assert "sees single clients' messages" in found["sum"]
    assert "every client adds the full noise" in found["clients"]
    assert "sees single clients' messages" not in found["clients"]


def test_tuned_result_trusts_whoever_sees_all_trainings() -> None:
    for place in ("sum", "clients"):
        found = stated(make_row(noise_at=place, tuning=SEARCH))["fedhypevae"]
        assert "shows only the best one to anybody" in found
        assert "aggregate and silo" not in found
        assert "anybody who sees a message or a score of a training that was not the best" in found


def test_statement_says_at_which_budget_a_parameter_was_chosen() -> None:
    cost = {"mean": 10, "distribution": "geometric", "trainings": [], "score": 3.0}
    rows = [
        make_row(
            cell_id=f"{epsilon}",
            epsilon_target=epsilon,
            tuning=SEARCH,
            selection=cost,
        )
        for epsilon in (1.0, 8.0)
    ]
    found = stated(*rows)["fedhypevae"]
    assert "tuning: ε = 1: chosen clip 1" in found
    assert "tuning: ε = 8: chosen clip 1" in found


@pytest.mark.parametrize("verdict", ["differs", "not proved"])
def test_a_method_that_is_not_proved_has_no_guarantee(verdict: Verdict) -> None:
    rows = [make_row(cell_id="a"), make_row(cell_id="b", label="other")]
    proofs = [Proof(rows[0], verdict, "why it is not"), Proof(rows[1], "proved")]
    found = {each.method: "\n".join(each.lines) for each in statements(rows, proofs)}
    assert re.search(
        "guarantee: none: one of its results .*: why it is not",
        found["fedhypevae"],
    )
    assert "budget: ε =" not in found["fedhypevae"]
    assert "budget: ε =" in found["other"]


def test_a_heuristic_claim_is_no_guarantee_and_says_so() -> None:
    assert "No (ε, δ) below is a guarantee" in stated(make_row(claim="heuristic"))["fedhypevae"]
    assert "guarantee" not in stated(make_row())["fedhypevae"]


def cited(*rows: Row) -> str:
    """The sentences for a paper; empty if there are none."""
    statement = statements(rows)[0]
    return dict(statement.parts).get("for a paper", "")


def test_a_proved_method_has_sentences_for_a_paper() -> None:
    rows = [
        make_row(
            cell_id=f"{epsilon}",
            epsilon_target=epsilon,
        )
        for epsilon in (1.0, 4.0)
    ]
    assert cited(*rows) == (
        "fedhypevae satisfies (ε, δ)-differential privacy with ε = 1 or 4 and δ = 0.0001. "
        "Neighbouring data sets differ in one training example (add or remove). The adversary sees "
        "only the sum of the clients' messages. ε was computed with the PRV accountant (Gopi, Lee "
        "& Wutschitz, 2021) from the steps that were run. The noise was "
        "simulated from a known seed, and nothing was released."
    )


def test_sentences_for_a_paper_name_author_group_and_trust() -> None:
    text = cited(
        make_row(
            claim="stated",
            unit="patient",
            trust="silo",
            noise="secret",
        )
    )
    assert text.startswith("According to its author, fedhypevae satisfies")
    assert "the examples of one client with one value of patient" in text
    assert "sees every message of every client" in text
    assert "known seed" not in text


@pytest.mark.parametrize(
    "fields",
    [{"claim": "heuristic"}, {"check": "failed"}, {"status": "overspent"}, {"status": "refuted"}],
)
def test_without_a_guarantee_there_is_nothing_to_cite(fields: dict[str, Any]) -> None:
    assert cited(make_row(**fields)) == ""


@pytest.mark.parametrize("status", ["failed", "unaccounted", "overspent", "refuted"])
def test_a_refuting_audit_shows_whatever_else_is_wrong(status: str) -> None:
    refuted = make_row(cell_id="r", epsilon_target=4.0, status=status, refuted=True)
    assert cited(make_row(), refuted) == ""
    assert (
        "audit: an audit refutes the claim at ε = 4:" in stated(make_row(), refuted)["fedhypevae"]
    )


def test_an_audit_that_refutes_nothing_is_not_stated() -> None:
    audited = make_row(epsilon_target=12.0, **AUDITED)
    assert "audit" not in stated(audited)["fedhypevae"]


def test_methods_without_noise_guarantee_nothing() -> None:
    found = stated(
        make_row(label="fedavg", epsilon_target=None),
        make_row(label="loud", epsilon_target=math.inf),
    )
    assert "guarantee: none: the method adds no noise" in found["fedavg"]
    assert "guarantee: none: it ran without noise" in found["loud"]


def test_method_without_valid_results_has_no_guarantee() -> None:
    unknown = [make_row(label=status, status=status) for status in ("unaccounted", "refuted")]
    found = stated(make_failed(), *unknown)
    assert found["fedhypevae"].endswith("guarantee: none: no experiment with it has finished")
    assert found["unaccounted"].endswith(
        "guarantee: none: what ran differs from what was planned, so its ε is not known"
    )
    assert found["refuted"].endswith("guarantee: none: an audit refutes its claim")


def test_reason_for_no_guarantee_is_the_gravest_of_all_results() -> None:
    refuted = make_row(cell_id="r", status="refuted")
    unaccounted = make_row(cell_id="u", status="unaccounted")
    failed = make_failed(cell_id="f")
    assert "an audit refutes its claim" in stated(refuted, unaccounted, failed)["fedhypevae"]
    assert "what ran differs from what was planned" in stated(unaccounted, failed)["fedhypevae"]


def test_statement_names_an_audit_that_refutes_another_budget() -> None:
    refuted = make_row(cell_id="r", epsilon_target=4.0, status="refuted")
    assert "no (ε, δ) here is a guarantee" in stated(make_row(), refuted)["fedhypevae"]
    short = changed(refuted, audit_params={"rounds": 6, "hidden": [8]})
    assert (
        "at ε = 4, of a short form: rounds 6, hidden [8]: no"
        in stated(make_row(), short)["fedhypevae"]
    )


def test_overspent_training_is_not_for_release() -> None:
    row = make_row(noise="secret", status="overspent", epsilon_spent=1.5)
    found = stated(row)["fedhypevae"]
    assert "counted from the steps that ran, and is larger than the ε that was planned" in found
    assert "nothing made here may be released" in found


def test_a_group_is_said_by_its_column() -> None:
    row = make_row(unit="patient")
    assert (
        "one group: neighbouring data sets differ in all examples of one client that have the "
        "same value of patient" in stated(row)["fedhypevae"]
    )


def test_spent_epsilon_is_never_rounded_down() -> None:
    almost_all = make_row(epsilon_target=2.0, epsilon_spent=1.99912)
    assert "ε = 2 (target 2)" in stated(almost_all)["fedhypevae"]
    less = make_row(epsilon_target=2.0, epsilon_spent=1.2341)
    assert "ε = 1.235 (target 2)" in stated(less)["fedhypevae"]


def test_statement_says_when_two_data_sets_are_neighbours() -> None:
    found = stated(make_row())["fedhypevae"]
    assert (
        "relation: add-or-remove-one: one of two neighbouring data sets has one unit more" in found
    )


def test_statement_names_the_effect_of_a_unit_on_an_update() -> None:
    assert (
        "clip: a unit's contribution is clipped to L2 norm 1;" in stated(make_row())["fedhypevae"]
    )
    found = stated(make_row(plan=NOISE | {"sensitivity": 2.0}))["fedhypevae"]
    assert "clip: an update is clipped to L2 norm 1, and one unit changes it by at most 2;" in found


def test_statement_names_the_effect_of_a_unit_for_every_clip_norm() -> None:
    rows = [
        make_row(
            cell_id=f"{clip}",
            plan={"sigma": 4.2, "clip": clip, "sensitivity": 2 * clip},
        )
        for clip in (1.0, 2.0)
    ]
    found = stated(*rows)["fedhypevae"]
    assert "clipped to L2 norm 1, and one unit changes it by at most 2;" in found
    assert "clipped to L2 norm 2, and one unit changes it by at most 4;" in found


def test_an_external_epsilon_is_the_authors_statement() -> None:
    theirs = make_row(
        label="theirs",
        algorithm=EXTERNAL,
        claim="stated",
        epsilon_target=3.1,
    )
    text = stated(theirs)["theirs"]
    assert "ε = 3.1 at δ = 0.0001 (unit example, trust aggregate)" in text
    assert "as stated by the author, not verified" in text
    assert "proved" not in text


def test_external_samples_without_an_epsilon_guarantee_nothing() -> None:
    theirs = make_row(label="theirs", algorithm=EXTERNAL, epsilon_target=math.inf)
    text = stated(theirs)["theirs"]
    assert "guarantee: none: external samples" in text
    assert "nothing of them may be released as private" in text


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        ({}, "training rows"),
        ({"unit": "client", "clients": 223}, "clients"),
        ({"unit": "patient", "train_groups": 223}, "groups by patient"),
    ],
)
def test_statement_warns_of_large_delta_without_a_count(fields: dict[str, Any], unit: str) -> None:
    row = make_row(delta=0.01, train_rows=223, **fields)
    (statement,) = statements([row])
    (warning,) = [text for term, text in statement.parts if term == "warning"]
    assert warning.startswith(f"δ = 0.01 is not below 1/n, where n is the number of {unit}: ")
    assert "223" not in "\n".join(statement.lines)
    assert f"{1 / 223:.2g}" not in "\n".join(statement.lines)


def test_a_weight_of_validation_examples_is_not_covered() -> None:
    words = "the weight of personal scores was chosen on them without noise"
    assert words in stated(make_row(evaluation={"personal": "held-out"}))["fedhypevae"]
    assert words not in stated(make_row(evaluation={"personal": "synthetic"}))["fedhypevae"]
