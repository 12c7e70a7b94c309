import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from cells import SHIPPED, quick, small_cells
from fedsim.results.rows import Row
from plug_ins import GOOD, write
from rows import joined

from fedsim.plugins.registry import lookup
from fedsim.privacy.accountant import epsilon
from fedsim.report.statement import statements
from fedsim.results.contradictions import CrossCheck, cross_check, large_deltas
from fedsim.training.trial import Outcome


@cache
def planned(name: str, unit: str = "example", trust: str = "aggregate", **params: object) -> Row:
    """The row of a cell as it is planned, of a training that did just that."""
    (trial,) = small_cells(quick(name, **params), epsilon=4.0, unit=unit, trust=trust).trials
    plan = trial.plan
    assert plan is not None
    return joined(trial, Outcome(plan.epsilon_reached, plan.accountant, plan.mechanisms, "sum", "", 0, 0, 0, 1.0, {}))


def forged(row: Row, noise: float = 1.0, steps: int | None = None, **fields: object) -> Row:
    """A row whose last mechanism has other noise or another count, which spends what it says."""
    *others, last = row.mechanisms or ()
    changes = {"noise_multiplier": noise * last.noise_multiplier, "count": last.count if steps is None else steps}
    mechanisms = (*others, replace(last, **changes))
    spent, _ = epsilon(mechanisms, row.delta or 0.0)
    told = {"mechanisms": mechanisms, "epsilon_spent": spent, "steps": sum(m.count for m in mechanisms)}
    return row.model_copy(update=told | fields)


PRIVATE = [name for name in SHIPPED if lookup(name).private]


@pytest.mark.parametrize(("unit", "trust"), [("example", "aggregate"), ("client", "silo")])
@pytest.mark.parametrize("name", PRIVATE)
def test_what_a_shipped_algorithm_plans_is_confirmed_whole_without_its_dimension(name, unit, trust):
    if unit in lookup(name).units and trust in lookup(name).trusts:
        assert cross_check(planned(name, unit, trust)) == CrossCheck()


FORGED = {
    "fewer steps than rounds": (lambda row: forged(row, steps=1), "number of steps is 3 and in its plan 42"),
    "more noise than sigma says": (lambda row: forged(row, noise=2), "release 'dp-sgd' is of noise multiplier"),
    "another sigma": (lambda row: row.model_copy(update={"sigma": 2 * row.sigma}), r"σ is .* and in its plan"),
    "more of both": (lambda row: forged(row, noise=2, sigma=2 * row.sigma), r"σ is .* and in its plan"),
    "a sensitivity of nothing": (lambda row: row.model_copy(update={"sensitivity": 1e-6}), "sensitivity 1e-6 is below the clip"),
    "a larger clip": (lambda row: row.model_copy(update={"clip": 2.0, "sensitivity": 2.0}), "clip is 2 and in its plan 0.5"),
    "a lower epsilon": (lambda row: row.model_copy(update={"epsilon_spent": 0.01}), "ε is 0.003 of what its mechanisms spend"),
    "a lower target": (lambda row: row.model_copy(update={"epsilon_target": 1.0, "epsilon_spent": 0.9995}), "of what its mechanisms spend"),
    "another delta": (lambda row: row.model_copy(update={"delta": 1e-6}), r"σ is .* and in its plan"),
    "a mechanism less": (lambda row: row.model_copy(update={"mechanisms": None, "steps": 38}), "number of steps is 38"),
    "another scope": (lambda row: row.model_copy(update={"scope": "everything"}), "scope is everything and in its plan joint"),
    "parameters that are none": (lambda row: row.model_copy(update={"params": {"rounds": -1}}), "makes no plan of its parameters"),
}


@pytest.mark.parametrize("change", FORGED)
def test_a_field_that_is_not_what_the_others_plan_is_a_contradiction(change):
    make, word = FORGED[change]
    found = cross_check(make(planned("fedhypevae", rounds=40)))
    assert any(re.search(word, each) for each in found.contradictions), found
    assert not found.notes


def test_a_claim_that_its_algorithm_does_not_make_is_a_contradiction():
    row = planned("fedhypevae", noised="shared")
    assert row.claim == "heuristic"
    assert cross_check(row) == CrossCheck()
    assert cross_check(row.model_copy(update={"claim": "proved"})).contradictions == ("it claims 'proved' and its algorithm 'heuristic'",)


def test_a_plug_in_that_is_proved_is_a_contradiction_and_one_that_is_stated_checked_or_refuted_is_none():
    row = planned("broken.tiny:Tiny")
    assert row.claim == "stated"
    for claim in ("stated", "checked", "heuristic"):
        assert cross_check(row.model_copy(update={"claim": claim}), trust_plugin=True) == CrossCheck()
    found = cross_check(row.model_copy(update={"claim": "proved"}), trust_plugin=True)
    assert found.contradictions == ("it claims 'proved' and its algorithm 'stated'",)


@pytest.mark.parametrize(("source", "says"), [("0123456789abcdef", "is not the one that ran"), (None, "which the row does not say")])
def test_what_other_code_plans_is_a_note_and_no_contradiction(source, says):
    row = planned("dp-gaussian")
    assert cross_check(row.model_copy(update={"source": source})) == CrossCheck()
    found = cross_check(forged(row, noise=1.5, source=source))
    assert found.contradictions == ()
    assert says in found.notes[0]
    assert "release 'moments' is of noise multiplier" in found.notes[0]


def test_the_plan_of_a_plug_in_is_rebuilt_only_if_its_code_is_trusted(folder: Path):
    name = write(folder, "theirs", GOOD)
    row = planned(name)
    twice = forged(row, noise=2)
    assert cross_check(row).notes == ("its plan was not rebuilt: its algorithm is a plug-in, whose code only runs with --trust-plugin",)
    assert cross_check(twice).contradictions == ()
    assert cross_check(row, trust_plugin=True) == CrossCheck()
    assert "and in its plan" in cross_check(twice, trust_plugin=True).contradictions[0]
    # without its code, from the row alone
    assert "below the clip" in cross_check(row.model_copy(update={"sensitivity": row.clip / 2})).contradictions[0]
    assert "of what its mechanisms spend" in cross_check(row.model_copy(update={"epsilon_spent": 1.0})).contradictions[0]


def test_an_algorithm_that_is_not_there_has_no_plan_and_that_is_said():
    row = planned("dp-gaussian").model_copy(update={"algorithm": "gone"})
    assert cross_check(row).contradictions == ()
    assert "its plan was not rebuilt: algorithm: unknown algorithm 'gone'" in cross_check(row).notes[0]


def test_a_method_with_a_row_that_contradicts_itself_has_no_guarantee():
    row = planned("dp-gaussian")
    (whole,), (broken,) = (statements(rows, cross_check) for rows in ([row], [row, forged(row, noise=2, cell_id="b", seed=1)]))
    assert dict(whole.parts)["claim"].startswith("proved: ")
    assert [term for term, _ in broken.parts] == ["guarantee"]
    assert broken.parts[0][1].startswith("none: a row of it contradicts itself: release 'moments' is of noise multiplier")
    # a page, which runs no code, knows what a row says of itself
    (page,) = statements([row.model_copy(update={"sensitivity": 0.5})])
    assert "sensitivity 0.5 is below the clip" in dict(page.parts)["guarantee"]


def test_a_statement_says_which_plan_was_not_rebuilt_and_which_delta_is_too_large():
    (told,) = statements([planned("dp-gaussian").model_copy(update={"algorithm": "gone", "delta": 0.05})], cross_check)
    assert [term for term, _ in told.parts] == ["guarantee"]
    (told,) = statements([planned("dp-gaussian").model_copy(update={"algorithm": "gone", "train_rows": 20_000})], cross_check)
    assert "its plan was not rebuilt" in dict(told.parts)["plan"]
    assert "δ = 0.0001 is not below 1/n = 5e-05 for the 20000 training rows" in dict(told.parts)["warning"]


def test_a_delta_is_too_large_for_the_units_that_it_protects():
    row = planned("fedhypevae").model_copy(update={"delta": 0.01})
    assert "1/n = 0.005 for the 200 training rows" in large_deltas([row, row])[0]
    assert len(large_deltas([row, row])) == 1
    assert large_deltas([row.model_copy(update={"unit": "client", "clients": 99})]) == []
    assert large_deltas([row.model_copy(update={"unit": "client", "clients": 100})])
    assert large_deltas([row.model_copy(update={"epsilon_target": None})]) == []


SIZED = """
from baselines.dp_gaussian import DPGaussian
class MyMethod(DPGaussian):
    def scope(self):
        return f"{self.task.dim} dimensions"
"""


def test_what_of_a_plan_depends_on_the_dimension_is_not_compared_and_that_is_said(folder: Path):
    row = planned(write(folder, "sized", SIZED))
    note = "what of its plan depends on the dimension, which the row does not hold, was not compared"
    assert cross_check(row, trust_plugin=True) == CrossCheck((), (note,))
    assert cross_check(row, trust_plugin=True, dims=(64,)) == CrossCheck()
    assert "scope is 64 dimensions and in its plan 32 dimensions" in cross_check(row, trust_plugin=True, dims=(32,)).contradictions
