from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedsim.methods.algorithm import Algorithm, Phase
from fedsim.privacy.plan import Release


def never(*_: object) -> Any:
    raise AssertionError


def phase(rounds: int, per_round: int) -> Phase:
    release = Release("", 1.0, rounds * per_round, per_round=per_round)
    return Phase(release, never, never, never)


class Scheduled:
    def __init__(self, phases: list[Phase]) -> None:
        self.phases = lambda: phases


some_phases = st.lists(
    st.builds(phase, st.integers(0, 5), st.integers(1, 4)),
    max_size=5,
)


@given(some_phases)
def test_schedule_numbers_rounds_steps_and_streams(phases: list[Phase]) -> None:
    rounds = list(Algorithm.schedule(Scheduled(phases)))  # type: ignore[arg-type]
    steps = []
    streams = []
    for index, one_phase in enumerate(phases):
        steps += [(index, step) for step in range(one_phase.release.rounds)]
    for round_ in rounds:
        assert round_.release is phases[round_.phase].release
        streams += range(
            round_.stream,
            round_.stream + round_.release.per_round,
        )
    assert [(round_.phase, round_.step) for round_ in rounds] == steps
    assert [round_.number for round_ in rounds] == list(range(len(steps)))
    assert streams == list(range(sum(one_phase.release.steps for one_phase in phases)))
