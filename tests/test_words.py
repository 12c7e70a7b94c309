import math

import numpy as np
import pytest
from rich.table import Table

from fedsim.words import counted, encodable, is_encodable, json_number, number, plain_console, setting, wide_console


@pytest.mark.parametrize(("value", "text"), [(None, ""), (math.inf, "∞"), (10, "10"), (0.1, "0.1"), (1e-5, "1e-5"), (123456, "123456")])
def test_a_number_reads_as_a_person_writes_it(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_number_can_be_rounded_and_infinity_stays_what_it_is() -> None:
    assert [number(value, 3) for value in (0.98765, 1.0e-5, math.inf)] == ["0.988", "1e-5", "∞"]


def test_json_spells_what_is_not_finite_and_leaves_the_rest() -> None:
    given = [math.inf, -math.inf, math.nan, np.float64("inf"), 1.5, 3, None, "inf", True]
    assert [json_number(value) for value in given] == ["inf", "-inf", "nan", "inf", 1.5, 3, None, "inf", True]


def test_a_setting_names_what_there_is() -> None:
    words = setting("mine", "digits", alpha=0.3, clients=10, epsilon=math.inf, seed=0)
    assert words == "mine · digits · α = 0.3 · 10 clients · ε = ∞ · seed 0"
    assert setting("mine", None, "") == "mine"
    assert setting("mine", clients=1) == "mine · 1 client"


def test_half_characters_are_replaced_by_what_can_be_written() -> None:
    assert is_encodable("ä 🅱")
    assert not is_encodable("a\udcffb")
    assert encodable("a\udcffb") == "a?b"


@pytest.mark.parametrize(("count", "words"), [(1, "1 cell"), (0, "0 cells"), (2, "2 cells"), (0.5, "0.5 cells"), (100000, "100000 cells")])
def test_one_of_a_thing_has_no_s(count: float, words: str) -> None:
    assert counted(count, "cell") == words


def test_no_console_reads_a_table_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[/a]", title="[red]x")
    table.add_row("[/b]")
    for console in (plain_console(), wide_console(plain_console())):
        console.print(table)
        out = capsys.readouterr().out
        assert all(text in out for text in ("[red]x", "[/a]", "[/b]"))
