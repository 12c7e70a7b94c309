"""The late round that a full check looks at."""

from fedsim.kit.checks.subject import ROUNDS, subject


def test_a_late_round_follows_the_phases_before_it_and_the_first_round_of_its_own() -> None:
    *before, late = subject("dp-linear", [], "example", "silo").late_rounds()
    assert [(round_.phase, round_.step) for round_ in before] == [(0, 0), (1, 0)]
    assert late.phase == 1
    assert late.step >= ROUNDS


def test_where_every_round_is_run_none_is_late() -> None:
    assert subject("dp-linear", ["rounds=20"], "example", "silo").late_rounds() == []
