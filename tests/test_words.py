import math

import numpy as np
import pytest
from rich.table import Table

from fedsim.words import json_number, number, plain_console, wide_console


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (math.inf, "∞"),
        (10, "10"),
        (0.1, "0.1"),
        (1e-5, "1e-5"),
        (123456, "123456"),
    ],
)
def test_number_reads_as_a_person_writes_it(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (np.float64("inf"), "inf"),
    ],
)
def test_number_that_is_not_finite_is_a_word_in_json(value: float, word: str) -> None:
    assert json_number(value) == word


@pytest.mark.parametrize("value", [1.5, 3, None, "inf", True])
def test_other_values_stay_as_they_are_in_json(value: object) -> None:
    assert json_number(value) is value


def test_no_console_reads_a_table_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[/a]", title="[red]x")
    table.add_row("[/b]")
    for console in (plain_console(), wide_console(plain_console())):
        console.print(table)
        out = capsys.readouterr().out
        for text in ("[red]x", "[/a]", "[/b]"):
            assert text in out
