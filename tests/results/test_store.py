import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import ERROR

import fedsim
from fedsim.errors import RunLost, UserError
from fedsim.results.store import ResultStore


def line(reference: str = "a", **fields: Any) -> dict[str, Any]:
    return {"reference": reference, "kind": "ceiling", **fields}


def test_folder_without_results_or_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no results here"):
        fedsim.load(tmp_path)
    ResultStore(tmp_path).append("trainings", [{"training_id": "a", "cell": {}, "error": ERROR}])
    with pytest.raises(UserError, match=r"its manifest\.json is missing"):
        fedsim.load(tmp_path)


def test_numbers_and_arrays_come_back(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    norms = np.array([1, np.inf], np.float32)
    store.append("references", [line(score=math.inf, norms=norms, loss=None)])
    (read,) = store.last("references").values()
    assert read["score"] == math.inf
    assert read["norms"] == [1.0, math.inf]
    assert read["loss"] is None
    (text,) = (tmp_path / "references.jsonl").read_text().splitlines()
    assert json.loads(text)["score"] == "inf"


@pytest.mark.parametrize("errors", [(ERROR, None), (None, ERROR), (None, None, ERROR)])
def test_failed_attempt_never_replaces_a_training(
    tmp_path: Path, errors: tuple[dict[str, str] | None, ...]
) -> None:
    store = ResultStore(tmp_path)
    for attempt, error in enumerate(errors):
        training = {
            "training_id": "a",
            "cell": {},
            "error": error,
            "attempt": attempt,
        }
        store.append("trainings", [training])
    last_success = max(attempt for attempt, error in enumerate(errors) if error is None)
    assert store.last("trainings")["a"]["attempt"] == last_success


@pytest.mark.parametrize("kept", [0, 1, 20, -2])
def test_torn_last_line_is_ignored_and_cut(tmp_path: Path, kept: int) -> None:
    store = ResultStore(tmp_path)
    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps(line("a")))  # which lacks only its newline
    store.append("references", [line("b")])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(line("torn")).encode()[:kept])
    assert list(store.last("references")) == ["a", "b"]
    store.append("references", [line("c")])
    assert path.read_bytes() == whole + json.dumps(line("c")).encode() + b"\n"


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.folder.log("a").mkdir(parents=True)
    with pytest.raises(RunLost, match=r"a\.log: cannot be written \(is a directory\)"):
        store.log("a", ["a line"])
    store.log("b", ["a line"])
    assert store.folder.log("b").read_text() == "a line\n"


@pytest.mark.parametrize(
    "text",
    [
        '{"training_id": "a"}',
        '{"training_id": "a", "round": Infinity}',
        '{"training_id": "a", "round": []}',
    ],
)
def test_line_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds.jsonl").write_text(f'{{"training_id": "a", "round": 0}}\n{text}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl:2: cannot be read"):
        ResultStore(tmp_path).rounds()


def test_rounds_that_run_again_replace_the_earlier_ones(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for attempt, rounds in enumerate([range(5), range(3, 6)]):
        for round_ in rounds:
            record = {"training_id": "a", "round": round_, "attempt": attempt}
            store.append("rounds", [record])
    store.append("rounds", [{"training_id": "b", "round": 0}])
    assert [record["attempt"] for record in store.rounds()["a"]] == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


HOLDER = """
import sys
from fedsim.results.store import ResultStore
with ResultStore(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_only_one_process_holds_a_folder(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}, is running in this folder"):
            store.append("references", [line()])
        process.kill()
        process.wait()
    store.append("references", [line()])
    assert list(store.last("references")) == ["a"]
