import math

import pytest
import torch

from fedsim.errors import NotPerExample
from fedsim.methods.contract import crowds
from fedsim.methods.messages import Task


@pytest.mark.parametrize("odd", [math.inf, 1e30])
def test_value_that_differs_in_a_large_batch_is_refused(odd: float) -> None:
    crowd, _ = crowds(Task(8, 3, 4))
    whole = torch.ones(len(crowd.y))
    alone = whole[:3].clone()
    whole[0] = odd
    with pytest.raises(NotPerExample, match="the loss is not per example"):
        crowd.check_same("the loss", slice(0, 3), alone, whole)
    crowd.check_same("the loss", slice(0, 3), whole[:3], whole)
