import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.json_lines import complete_lines, decode, dump, load, plain_json
from fedsim.results.store import ResultStore

WORDS = ("inf", "-inf", "nan")
TEXTS = st.text() | st.sampled_from(WORDS) | st.from_regex(r"'{0,3}(-?inf|nan)'?", fullmatch=True)
VALUES = st.recursive(
    TEXTS | st.floats() | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FILES = ("trainings.jsonl", "rounds.jsonl", "evaluations.jsonl")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(FILES))
def test_mutated_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, name: str) -> None:
    lines = {
        "trainings.jsonl": b'{"training_id": "a", "cell": {"label": "a"}, "error": null}',
        "rounds.jsonl": b'{"training_id": "a", "round": 0, "loss": "nan", "norms": [0.5, "inf"]}',
        "evaluations.jsonl": b'{"cell_id": "a", "training_id": "b", "error": {"type": "ValueError",'
        b'"message": "no"}}',
    }
    content = bytearray((lines[name] + b"\n") * 2)
    for place in data.draw(
        st.lists(
            st.integers(0, len(content) - 1),
            min_size=1,
            max_size=6,
        )
    ):
        content[place] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(list(b'[]{},:"0-eE.')))
        )
    (tmp_path / name).write_bytes(content)
    try:
        list(ResultStore(tmp_path).lines(name.removesuffix(".jsonl")))  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_hint_for_a_file_without_permission_keeps_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError) as caught:
        list(complete_lines(tmp_path / "trainings.jsonl"))
    assert "make the file readable" in caught.value.hint
    assert "move it away" not in caught.value.hint


@settings(max_examples=500)
@given(VALUES)
def test_line_gives_back_any_text_and_any_number(value: Any) -> None:
    line = dump(value)
    assert "\n" not in line
    # repr tells nan from "nan" and -0.0 from 0.0, and finds two nans alike.
    assert repr(decode(load(line))) == repr(value)


@given(VALUES)
def test_line_is_json_by_the_standard(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(dump(value), parse_constant=refuse)
    json.loads(plain_json(value), parse_constant=refuse)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_store_gives_back_any_text_and_any_number(tmp_path: Path, value: Any) -> None:
    store = ResultStore(tmp_path)
    store.folder.lines("rounds").unlink(missing_ok=True)
    line = {"training_id": "a", "round": 0, "value": value}
    store.append("rounds", [line])
    assert repr(list(store.lines("rounds"))) == repr([line])


@pytest.mark.parametrize(("word", "number"), [("inf", math.inf), ("-inf", -math.inf)])
def test_number_that_is_not_finite_is_a_word(word: str, number: float) -> None:
    assert dump([number]) == plain_json([number]) == f'["{word}"]'


def test_text_of_such_a_word_is_plain_where_types_are_known() -> None:
    assert plain_json({"label": "nan"}) == '{"label": "nan"}'
