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


def test_a_folder_without_results_or_manifest_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no results here"):
        fedsim.load(tmp_path)
    ResultStore(tmp_path).append("trainings", [{"training_id": "a", "cell": {}, "error": ERROR}])
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        fedsim.load(tmp_path)


def test_numbers_and_arrays_come_back_and_infinity_on_disk_is_a_word(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.append(
        "references",
        [
            line(score=math.inf, norms=np.float32([1, np.inf]), loss=np.float64(np.nan)),
            line("b", score=None),
        ],
    )
    assert [
        json.loads(text)["score"]
        for text in (tmp_path / "references.jsonl").read_text().splitlines()
    ] == ["inf", None]
    first, second = store.last("references").values()
    assert (first["score"], first["norms"], math.isnan(first["loss"]), second["score"]) == (
        math.inf,
        [1.0, math.inf],
        True,
        None,
    )


def test_a_training_that_succeeded_stands_before_attempts_that_failed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    attempts = [("a", ERROR, 1), ("b", None, 1), ("a", None, 2), ("b", ERROR, 2)]
    store.append(
        "trainings",
        [
            {"training_id": name, "cell": {}, "error": error, "run": run}
            for name, error, run in attempts
        ],
    )
    assert {name: found["run"] for name, found in store.last("trainings").items()} == {
        "a": 2,
        "b": 1,
    }


@pytest.mark.parametrize("kept", [0, 1, 20, -2])
def test_a_torn_last_line_is_ignored_and_cut_before_the_next_append(
    tmp_path: Path, kept: int
) -> None:
    store = ResultStore(tmp_path)
    path = tmp_path / "references.jsonl"
    path.write_text(json.dumps(line("a")))  # which lacks only its newline
    store.append("references", [line("b")])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(line("torn")).encode()[:kept])
    assert list(store.last("references")) == ["a", "b"]
    store.append("references", [line("c")])
    assert path.read_bytes() == whole + json.dumps(line("c")).encode() + b"\n"


def test_what_cannot_be_written_ends_the_run_and_is_told_by_its_own_name(tmp_path: Path) -> None:
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
def test_a_line_that_is_none_of_its_kind_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rounds.jsonl").write_text(f'{{"training_id": "a", "round": 0}}\n{text}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl:2: cannot be read"):
        ResultStore(tmp_path).rounds()


def test_rounds_of_a_training_that_ran_again_replace_the_earlier_from_there_on(
    tmp_path: Path,
) -> None:
    store = ResultStore(tmp_path)
    for training, numbers, run in (
        ("a", range(5), 1),
        ("b", range(1), 1),
        ("a", range(3, 6), 2),
        ("b", range(2), 2),
    ):
        store.append(
            "rounds", [{"training_id": training, "round": number, "run": run} for number in numbers]
        )
    assert {name: [each["run"] for each in own] for name, own in store.rounds().items()} == {
        "a": [1, 1, 1, 2, 2, 2],
        "b": [2, 2],
    }


def test_only_one_process_holds_a_folder(tmp_path: Path) -> None:
    hold = (
        f"with ResultStore({str(tmp_path)!r}).lock():\n    print('held', flush=True)\n    "
        "sys.stdin.read()"
    )
    holder = f"import sys\nfrom fedsim.results.store import ResultStore\n{hold}"
    store = ResultStore(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}, is running in this folder"):
            store.append("references", [line()])
        process.kill()
        process.wait()
    store.append("references", [line()])
    assert list(store.last("references")) == ["a"]
