from typing import Any

import pytest
from cells import digits_of_writers, one_cell, quick


@pytest.mark.parametrize(("unit", "units"), [("example", 200), ("client", 4)])
def test_units_are_examples_or_clients(unit: str, units: int) -> None:
    entry = quick("fedhypevae")
    trial, _, _ = one_cell(entry, epsilon=4.0, unit=unit)
    assert trial.units == units


def test_units_are_groups_by_a_column(tmp_path: Any) -> None:
    trial, data, _ = one_cell(
        quick("fedhypevae"),
        epsilon=4.0,
        dataset={"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"},
        unit={"column": "writer"},
    )
    assert trial.units == len(set(data.columns["writer"]))
