import pytest

from fedsim.planning.node import Node, Share, fit_together

MACHINE = Node(8.0, 2.0)


@pytest.mark.parametrize(
    ("share", "actors"),
    [(Share(1.0), 8), (Share(2.0, 0.25), 4), (Share(1.0, 0.6), 2), (Share(1.0, 1 / 3), 6), (Share(1.0, 2.0), 1), (Share(1.0, 3.0), 0)],
)
def test_a_part_of_a_gpu_lies_on_one_gpu(share: Share, actors: int) -> None:
    assert share.fit(MACHINE) == actors
    assert fit_together([share] * actors, [MACHINE])
    assert not fit_together([share] * (actors + 1), [MACHINE])


def test_shares_of_several_sizes_are_placed_beside_each_other() -> None:
    whole, half, third = Share(1.0, 1.0), Share(1.0, 0.5), Share(1.0, 0.3)
    assert fit_together([whole, half, third], [MACHINE])
    assert not fit_together([whole, half, half, third], [MACHINE])
    assert fit_together([whole, half, half, third], [MACHINE, Node(1.0, 1.0)])
    assert not fit_together([whole, whole, half], [MACHINE, Node(4.0, 0.0)])
