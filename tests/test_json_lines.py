from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.results.store import ResultStore

FILES = ("trainings.jsonl", "rounds.jsonl", "judgements.jsonl")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(FILES))
def test_a_mutated_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, name: str) -> None:
    lines = {
        "trainings.jsonl": b'{"training_id": "a", "cell": {"label": "a"}, "error": null}',
        "rounds.jsonl": b'{"training_id": "a", "round": 0, "loss": "nan", "norms": [0.5, "inf"]}',
        "judgements.jsonl": b'{"cell_id": "a", "training_id": "b", "error": {"type": "ValueError", '
        b'"message": "no"}}',
    }
    content = bytearray((lines[name] + b"\n") * 2)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
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
