from hypothesis import given
from hypothesis import strategies as st

from fedsim.methods.algorithm import Algorithm, Phase
from fedsim.methods.messages import Round
from fedsim.privacy.plan import Release


def phase(name: str, rounds: int, per_round: int) -> Phase:
    def never(*_: object) -> None:
        raise AssertionError

    release = Release(name, 1.0, rounds * per_round, per_round=per_round)
    return Phase(release, never, never, never)  # type: ignore[arg-type]


def rounds_of(phases: list[Phase]) -> list[Round]:
    class Scheduled:
        def phases(self) -> list[Phase]:
            return phases

    return list(Algorithm.schedule(Scheduled()))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5))
def test_schedule_numbers_rounds_steps_and_streams(
    sizes: list[tuple[int, int]],
) -> None:
    phases = [phase(str(index), *size) for index, size in enumerate(sizes)]
    rounds = rounds_of(phases)
    assert [round_.number for round_ in rounds] == list(range(sum(rounds for rounds, _ in sizes)))
    assert [(round_.phase, round_.step) for round_ in rounds] == [
        (i, step) for i, (count, _) in enumerate(sizes) for step in range(count)
    ]
    assert all(round_.release is phases[round_.phase].release for round_ in rounds)
    streams = [
        round_.stream + step for round_ in rounds for step in range(round_.release.per_round)
    ]
    assert streams == list(range(sum(count * per_round for count, per_round in sizes)))
