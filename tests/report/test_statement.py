import math
import re
from typing import Any

import pytest
from rows import NOISE, changed, make_failed, make_row

from fedsim.evidence.prove import Proof, Verdict
from fedsim.plugins.registry import EXTERNAL
from fedsim.report.statement import statements


def told(*rows) -> dict[str, str]:
    return {each.method: "\n".join(each.lines) for each in statements(rows)}


def test_method_has_one_statement_with_a_line_per_budget() -> None:
    rows = [
        make_row(cell_id=f"{epsilon}{seed}", epsilon_target=epsilon, seed=seed)
        for epsilon in (1.0, 4.0)
        for seed in (0, 1)
    ]
    found = told(*rows, make_row(cell_id="inf", epsilon_target=math.inf))
    assert list(found) == ["fedhypevae"]
    assert found["fedhypevae"].count("budget: ε =") == 2
    assert "target 4" in found["fedhypevae"]


def test_statement_says_where_noise_is_added() -> None:
    at_sum, at_clients = (make_row(noise_at=place, label=place) for place in ("sum", "clients"))
    found = told(at_sum, at_clients)
    assert "noise is added once to it" in found["sum"]
    assert "sees single clients' messages" in found["sum"]
    assert "every client adds the full noise" in found["clients"]
    assert "sees single clients' messages" not in found["clients"]


def test_tuned_result_trusts_whoever_sees_all_trainings() -> None:
    search = {
        "space": {"clip": (1, 2)},
        "trials": 10,
        "distribution": "geometric",
        "free": False,
        "held_out": 0.1,
        "chosen": {"clip": 1},
        "trained": 2,
    }
    for place in ("sum", "clients"):
        found = told(make_row(noise_at=place, tuning=search))["fedhypevae"]
        assert "shows nobody, clients included, any but the best" in found
        assert "silo as well" not in found
        assert "whoever sees a message or a score of a training that was not the best" in found


@pytest.mark.parametrize("verdict", ["differs", "not proved"])
def test_a_method_that_is_not_proved_has_no_guarantee(verdict: Verdict) -> None:
    rows = [make_row(cell_id="a"), make_row(cell_id="b", label="other")]
    proofs = [Proof(rows[0], verdict, "why it is not"), Proof(rows[1], "proved")]
    found = {each.method: "\n".join(each.lines) for each in statements(rows, proofs)}
    assert re.search("guarantee: none: a row of it .*: why it is not", found["fedhypevae"])
    assert "budget: ε =" not in found["fedhypevae"]
    assert "budget: ε =" in found["other"]


def test_a_heuristic_claim_is_no_guarantee_and_says_so() -> None:
    assert "No (ε, δ) below is a guarantee" in told(make_row(claim="heuristic"))["fedhypevae"]
    assert "guarantee" not in told(make_row())["fedhypevae"]


def test_methods_without_noise_guarantee_nothing() -> None:
    found = told(
        make_row(label="fedavg", epsilon_target=None),
        make_row(label="loud", epsilon_target=math.inf),
    )
    assert "guarantee: none: it adds no noise" in found["fedavg"]
    assert "guarantee: none: it ran without noise" in found["loud"]


def test_method_without_valid_results_has_no_guarantee() -> None:
    unknown = [
        changed(make_row(label=status), status=status) for status in ("unaccounted", "refuted")
    ]
    found = told(make_failed(), *unknown)
    assert found["fedhypevae"].endswith("guarantee: none: no cell of it has finished")
    assert found["unaccounted"].endswith(
        "guarantee: none: what ran is not what was planned, so nothing is known of its ε"
    )
    assert found["refuted"].endswith("guarantee: none: an audit refutes what it claims")


def test_statement_names_an_audit_that_refutes_another_budget() -> None:
    refuted = changed(make_row(cell_id="r", epsilon_target=4.0), status="refuted")
    assert "no (ε, δ) here is a guarantee" in told(make_row(), refuted)["fedhypevae"]
    short = changed(refuted, audit_params={"rounds": 6, "hidden": [8]})
    assert (
        "at another budget, of a short form: rounds 6, hidden [8]: no"
        in told(make_row(), short)["fedhypevae"]
    )


def test_overspent_training_is_not_for_release() -> None:
    row = changed(make_row(noise="secret"), status="overspent", epsilon_spent=1.5)
    found = told(row)["fedhypevae"]
    assert (
        "counted from the steps that ran, and more than the plan that was solved before the first"
        in found
    )
    assert "nothing made here may be released" in found


def test_a_group_is_said_by_its_column() -> None:
    row = changed(make_row(), unit="patient")
    assert (
        "one group: neighbouring data sets differ in all rows of one client that have one "
        "value of patient" in told(row)["fedhypevae"]
    )


def test_spent_epsilon_is_never_rounded_down() -> None:
    almost_all = make_row(epsilon_target=2.0, epsilon_spent=1.99912)
    assert "ε = 2 (target 2)" in told(almost_all)["fedhypevae"]
    less = make_row(epsilon_target=2.0, epsilon_spent=1.2341)
    assert "ε = 1.235 (target 2)" in told(less)["fedhypevae"]


def test_statement_says_when_two_data_sets_are_neighbours() -> None:
    found = told(make_row())["fedhypevae"]
    assert "relation: add-or-remove-one: neighbours differ in the presence of one unit" in found


def test_statement_names_the_effect_of_a_unit_on_an_update() -> None:
    assert "clip: a unit's contribution is clipped to L2 norm 1;" in told(make_row())["fedhypevae"]
    found = told(make_row(plan=NOISE | {"sensitivity": 2.0}))["fedhypevae"]
    assert (
        "clip: an update is clipped to L2 norm 1, and replacing one unit's data changes it "
        "by at most 2;" in found
    )


def test_an_external_epsilon_is_the_authors_statement() -> None:
    theirs = make_row(label="theirs", algorithm=EXTERNAL, claim="stated", epsilon_target=3.1)
    text = told(theirs)["theirs"]
    assert "ε = 3.1 at δ = 0.0001 (unit example, trust aggregate)" in text
    assert "as stated by the author, not verified" in text
    assert "proved" not in text


def test_external_samples_without_an_epsilon_guarantee_nothing() -> None:
    theirs = make_row(label="theirs", algorithm=EXTERNAL, epsilon_target=math.inf)
    text = told(theirs)["theirs"]
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
    (stated,) = statements([row])
    (warning,) = [text for term, text in stated.parts if term == "warning"]
    assert warning.startswith(f"δ = 0.01 is not below 1/n, where n is the number of {unit}: ")
    assert "223" not in "\n".join(stated.lines)
    assert f"{1 / 223:.2g}" not in "\n".join(stated.lines)
