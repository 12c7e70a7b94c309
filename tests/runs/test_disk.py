"""A run folder on a disk that gets full, goes read-only or is gone while cells run; a real file system each time."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import Ran
from cells import small_grid

from fedsim.errors import RunLost, UserError
from fedsim.results.run import read_results
from fedsim.results.store import Kind, ResultStore, RunFolder

Bench = Callable[..., Ran]
Acting = Callable[[Callable[[], object]], None]
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


@pytest.fixture
def after_a_row(monkeypatch: pytest.MonkeyPatch) -> Acting:
    """Has something done to the run folder as soon as it holds a whole row, before anything else is written."""
    append = ResultStore.append

    def arrange(act: Callable[[], object]) -> None:
        def append_and_act(store: ResultStore, kind: Kind, lines: Any) -> None:
            append(store, kind, lines)
            if kind == "judgements":
                monkeypatch.setattr(ResultStore, "append", append)
                act()

        monkeypatch.setattr(ResultStore, "append", append_and_act)

    return arrange


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64))
        except OSError:
            return


def test_a_disk_that_gets_full_loses_no_row_and_the_same_command_goes_on(bench: Bench, disk: Path, after_a_row: Acting) -> None:
    after_a_row(lambda: fill(disk))
    with pytest.raises(RunLost, match=r"cannot be written \(no space left on device\).*the same command goes on"):
        bench(small_grid("weight-noise", **GRID))
    before = {path: path.read_bytes() for path in map(RunFolder(disk).lines, ("trainings", "judgements", "references"))}
    assert all(text.endswith(b"\n") for text in before.values())
    assert 1 <= len(read_results(disk).every_row()) < 4
    (disk / "filler").unlink()
    mount("-o", "remount,size=64m", str(disk))
    again = bench(small_grid("weight-noise", **GRID))
    assert again.code == 0
    assert all(path.read_bytes().startswith(text) for path, text in before.items())
    assert len(again.rows) == 4


def test_a_file_system_that_goes_read_only_is_reported(bench: Bench, disk: Path, after_a_row: Acting) -> None:
    after_a_row(lambda: make_read_only(disk))
    with pytest.raises(RunLost, match="cannot be written"):
        bench(small_grid("weight-noise", **GRID))
    assert read_results(disk).every_row()


def make_read_only(disk: Path) -> None:
    """Through a mount of itself over it: the lock is open for writing, which a plain remount does not allow."""
    mount("--bind", str(disk), str(disk))
    mount("-o", "remount,bind,ro", str(disk))


def test_a_folder_that_is_removed_is_reported_and_not_made_again(bench: Bench, tmp_path: Path, after_a_row: Acting) -> None:
    folder = tmp_path / "run"
    after_a_row(lambda: shutil.rmtree(folder))
    with pytest.raises(RunLost, match="was moved or removed while fedsim ran in it; the same command runs what the folder lacks"):
        bench(small_grid("weight-noise", **GRID))
    assert not folder.exists()
    assert len(bench(small_grid("weight-noise", **GRID)).rows) == 4


def test_half_a_line_is_never_left(disk: Path) -> None:
    store = ResultStore(disk)
    store.append("rounds", [{"training_id": "a", "round": 0}])
    before = (disk / "rounds.jsonl").read_bytes()
    fill(disk)
    with pytest.raises(RunLost, match="no space left on device"):
        store.append("rounds", [{"training_id": "a", "round": 1, "norms": [0.125] * 100_000}])
    assert (disk / "rounds.jsonl").read_bytes() == before


def test_a_folder_in_use_is_refused_without_making_anything(tmp_path: Path) -> None:
    ResultStore(tmp_path / "none").check_free()
    assert not (tmp_path / "none").exists()
    with ResultStore(tmp_path / "run").lock(), pytest.raises(UserError, match="is running in this folder; wait for it or stop it"):
        ResultStore(tmp_path / "run").check_free()
    ResultStore(tmp_path / "run").check_free()
