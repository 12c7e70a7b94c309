"""A method refuses settings by its word."""

import math
from typing import Any

import pytest
from broken.results import ClientMayBeRefused
from cells import quick, small_cells

from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task
from fedsim.privacy.plan import Trust, Unit


def made(
    cls: type[Algorithm], unit: Unit = "example", trust: Trust = "aggregate", **params: Any
) -> Algorithm:
    return cls(cls.Params(**params), Task(8, 3, 4, unit, trust))


def test_a_method_refuses_a_setting_by_its_word() -> None:
    with pytest.raises(UserError, match="rows_only: clients have no plan"):
        solved_plan(
            made(ClientMayBeRefused, "client", "silo", rows_only=True),
            math.inf,
            1e-4,
        )
    with pytest.raises(UserError, match="unit: the method does not support 'group'"):
        solved_plan(made(ClientMayBeRefused, "group"), 1.0, 1e-4)
    (trial,) = small_cells(
        quick("broken.results:ClientMayBeRefused"), epsilon=4.0, trust="silo", unit="client"
    ).trials
    assert trial.plan is not None
