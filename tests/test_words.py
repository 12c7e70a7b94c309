import math

import numpy as np
import pytest
from rich.table import Table

from fedsim.words import json_number, number, plain_console, wide_console


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (math.inf, "∞"), (10, "10"), (0.1, "0.1"), (1e-5, "1e-5"), (123456, "123456")],
)
def test_a_number_reads_as_a_person_writes_it(value: float | None, text: str) -> None:
    assert number(value) == text


def test_json_spells_what_is_not_finite_and_leaves_the_rest() -> None:
    given = [math.inf, -math.inf, math.nan, np.float64("inf"), 1.5, 3, None, "inf", True]
    assert [json_number(value) for value in given] == [
        "inf",
        "-inf",
        "nan",
        "inf",
        1.5,
        3,
        None,
        "inf",
        True,
    ]


def test_no_console_reads_a_table_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[/a]", title="[red]x")
    table.add_row("[/b]")
    for console in (plain_console(), wide_console(plain_console())):
        console.print(table)
        out = capsys.readouterr().out
        assert all(text in out for text in ("[red]x", "[/a]", "[/b]"))
