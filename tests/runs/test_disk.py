"""A run folder on a disk that gets full, goes read-only or is gone while cells run; a real file
system each time.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import Ran
from cells import small_grid

from fedsim.errors import RunLost
from fedsim.results.join import read_results
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
    bench: Bench,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = ResultStore.append

    def append_and_fill(store: ResultStore, kind: Kind, lines: Any) -> None:
        append(store, kind, lines)
        if kind == "evaluations":
            fill(disk)

    lost = r"cannot be written \(no space left on device\).*the same command goes on"
    with monkeypatch.context() as patch:
        patch.setattr(ResultStore, "append", append_and_fill)
        with pytest.raises(RunLost, match=lost):
            bench(small_grid("weight-noise", **GRID))
    before = {
        path: path.read_bytes()
        for path in map(RunFolder(disk).lines, ("trainings", "evaluations", "references"))
    }
    assert all(text.endswith(b"\n") for text in before.values())
    assert 1 <= len(read_results(disk).every_row()) < 4
    (disk / "filler").unlink()
    mount("-o", "remount,size=64m", str(disk))
    again = bench(small_grid("weight-noise", **GRID))
    assert again.code == 0
    assert all(path.read_bytes().startswith(text) for path, text in before.items())
    assert len(again.rows) == 4


def test_half_a_line_is_never_left(disk: Path) -> None:
    store = ResultStore(disk)
    store.append("rounds", [{"training_id": "a", "round": 0}])
    before = (disk / "rounds.jsonl").read_bytes()
    fill(disk)
    with pytest.raises(RunLost, match="no space left on device"):
        store.append("rounds", [{"training_id": "a", "round": 1, "norms": [0.125] * 100_000}])
    assert (disk / "rounds.jsonl").read_bytes() == before
