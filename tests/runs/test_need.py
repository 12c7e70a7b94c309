import pytest

from fedsim.runs.need import Need, Node, fit_together

MACHINE = Node(8.0, 2.0)


@pytest.mark.parametrize(
    ("need", "actors"),
    [(Need(1.0), 8), (Need(2.0, 0.25), 4), (Need(1.0, 0.6), 2), (Need(1.0, 1 / 3), 6), (Need(1.0, 2.0), 1), (Need(1.0, 3.0), 0)],
)
def test_a_part_of_a_gpu_lies_on_one_gpu(need: Need, actors: int) -> None:
    assert need.fit(MACHINE) == actors
    assert fit_together([need._replace(actors=actors)], [MACHINE])
    assert not fit_together([need._replace(actors=actors + 1)], [MACHINE])


def test_needs_of_several_jobs_are_placed_beside_each_other() -> None:
    whole, half, third = Need(1.0, 1.0), Need(1.0, 0.5), Need(1.0, 0.3)
    assert fit_together([whole, half, third], [MACHINE])
    assert not fit_together([whole, half, half, third], [MACHINE])
    assert fit_together([whole, half, half, third], [MACHINE, Node(1.0, 1.0)])
    assert not fit_together([whole, whole, half], [MACHINE, Node(4.0, 0.0)])
