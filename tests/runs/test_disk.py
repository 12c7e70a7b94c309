"""A run folder on a real disk that gets full while cells run."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import Ran
from cells import small_grid

from fedsim.errors import RunLost
from fedsim.results.join import read_results
from fedsim.results.lines import keep_state
from fedsim.results.store import Kind, ResultStore, RunFolder

Bench = Callable[..., Ran]
GRID = {"seeds": [0, 1, 2, 3], "resources": {"clients_per_actor": "all", "save_generators": False}}


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB where the bench's run folder is."""
    run = tmp_path / "run"
    run.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(run))
    yield run
    while os.path.ismount(run):
        subprocess.run(["umount", "-l", str(run)], check=True)


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64))
        except OSError:
            return


def test_full_disk_loses_no_result_and_the_run_can_continue(
    bench: Bench, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = ResultStore.append
    grid = small_grid("weight-noise", **GRID)

    def append_and_fill(store: ResultStore, kind: Kind, lines: Any) -> None:
        append(store, kind, lines)
        if kind == "evaluations":
            fill(disk)

    message = r"cannot be written \(no space left on device\).*the same command continues"
    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "append", append_and_fill)
        with pytest.raises(RunLost, match=message):
            bench(grid)
    before = {}
    for kind in ("trainings", "evaluations", "references"):
        path = RunFolder(disk).lines(kind)
        before[path] = path.read_bytes()
        assert before[path].endswith(b"\n")
    assert 1 <= len(read_results(disk).every_row()) < 4
    (disk / "filler").unlink()
    mount("-o", "remount,size=64m", str(disk))
    again = bench(grid)
    assert again.code == 0
    assert len(again.rows) == 4
    for path, content in before.items():
        assert path.read_bytes().startswith(content)


def test_half_a_line_is_never_left(disk: Path) -> None:
    store = ResultStore(disk)
    store.append("rounds", [{"training_id": "a", "round": 0}])
    before = (disk / "rounds.jsonl").read_bytes()
    fill(disk)
    with pytest.raises(RunLost, match="no space left on device"):
        store.append("rounds", [{"training_id": "a", "round": 1, "norms": [0.125] * 100_000}])
    assert (disk / "rounds.jsonl").read_bytes() == before


def test_tensors_that_do_not_fit_name_the_file_and_leave_nothing(disk: Path) -> None:
    path = RunFolder(disk).state("a")
    with pytest.raises(OSError, match="No space left on device") as raised:
        keep_state(path, {"means": torch.zeros(100_000)})
    assert raised.value.filename == str(path)
    assert not list(path.parent.iterdir())
