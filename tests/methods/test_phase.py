import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.methods.phase import Phase, rounds_of
from fedsim.privacy.plan import Release


def phase(name: str, rounds: int, per_round: int, turns: int = 1, correlation: tuple[float, ...] = ()) -> Phase:
    def never(*_: object) -> None:
        raise AssertionError

    release = Release(name, 1.0, rounds * per_round, per_round=per_round, turns=turns)
    return Phase(release, never, never, never, correlation=correlation)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5))
def test_rounds_are_numbered_over_all_phases_and_steps_within_one(sizes: list[tuple[int, int]]) -> None:
    phases = [phase(str(index), *size) for index, size in enumerate(sizes)]
    rounds = list(rounds_of(phases))
    assert [round_.number for round_ in rounds] == list(range(sum(rounds for rounds, _ in sizes)))
    assert [(round_.phase, round_.step) for round_ in rounds] == [(i, step) for i, (count, _) in enumerate(sizes) for step in range(count)]
    assert all(round_.release is phases[round_.phase].release for round_ in rounds)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5))
def test_no_two_steps_of_a_training_draw_from_the_same_stream(sizes: list[tuple[int, int]]) -> None:
    rounds = rounds_of([phase(str(index), *size) for index, size in enumerate(sizes)])
    streams = [round_.stream + step for round_ in rounds for step in range(round_.release.per_round)]
    assert streams == list(range(sum(count * per_round for count, per_round in sizes)))


def test_every_client_has_its_turns_and_no_others() -> None:
    rounds = list(rounds_of([phase("first", 3, 1), phase("in turns", 2, 1, turns=3)]))
    turns = [[client for client in range(6) if round_.has_turn(client)] for round_ in rounds]
    assert turns == [[0, 1, 2, 3, 4, 5]] * 3 + [[0, 3], [1, 4], [2, 5]] * 2


@pytest.mark.parametrize("correlation", [(0.8, 0.6, 0.0), (0.8, 0.7), (0.0, 1.0), (float("nan"), 0.0)])
def test_a_correlation_that_the_account_does_not_cover_is_refused(correlation: tuple[float, ...]) -> None:
    assert phase("in turns", 2, 1, turns=2, correlation=(0.8, 0.6))
    with pytest.raises(ValueError, match=r"give at most 2 numbers \(turns\), of norm 1, to a gaussian"):
        phase("in turns", 2, 1, turns=2, correlation=correlation)
