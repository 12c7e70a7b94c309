"""What a unit changed in a round of several steps."""

import pytest
import torch

from fedsim.evidence.check.comparison import rounds
from fedsim.evidence.worlds import Query, Tape
from fedsim.methods.clients import Noised
from fedsim.methods.messages import Message
from fedsim.privacy.plan import Release

RELEASE = Release("two steps", 0.5, 1, per_round=2)


def tape(value: float, *sampled: bool) -> Tape:
    """One round, whose steps have the unit in their samples or not."""
    sums = {"sum": torch.tensor([value])}
    queries = [Query(0, RELEASE, step, (0,), sums, {}, Noised(sums, {}), held) for step, held in enumerate(sampled)]
    return Tape(queries=queries, messages={0: Message(sums=sums)})


@pytest.mark.parametrize(("sampled", "held"), [((True, False), True), ((False, True), True), ((False, False), False), ((), True)])
def test_a_unit_in_the_sample_of_one_step_is_in_the_rounds(sampled: tuple[bool, ...], held: bool) -> None:
    (change,) = rounds(tape(1.0, *sampled), tape(0.0, *sampled), None)
    assert (change.norm, change.sampled) == (1.0, held)
