"""Finished cells that run again: the same rows and rounds, or what differs."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benches import Ran, run_in_process
from cells import NODES, small_grid
from rich.console import Console

from fedsim.errors import UserError
from fedsim.results.store import Kind, ResultStore, RunFolder
from fedsim.runs.manifest import prepared_again
from fedsim.runs.prepare import Node
from fedsim.runs.rerun import run_again

Bench = Callable[..., Ran]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs in this process."""
    monkeypatch.setattr("fedsim.runs.manifest.this_machine", lambda: Node(1.0, 0.0))
    run_in_process(monkeypatch, NODES[0])


def again(folder: Path, count: int) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    equal = run_again(folder, console, count)
    return equal, console.file.getvalue()  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def four_cells(bench: Bench) -> Path:
    grid = small_grid(
        "dp-gaussian",
        "weight-noise",
        epsilon=4.0,
        alpha=[0.5, 1.0],
    )
    return bench(grid).folder


def append_changed(folder: Path, kind: Kind, key: str, **values: Any) -> None:
    """Append all lines of a kind again, with other values in one of their mappings."""
    store = ResultStore(folder)
    lines = []
    for line in store.last(kind).values():
        changed = line[key] | values
        lines.append(line | {key: changed})
    store.append(kind, lines)


def test_cells_that_run_again_give_equal_results(bench: Bench) -> None:
    folder = four_cells(bench)
    before = contents(folder)
    equal, output = again(folder, 3)
    assert equal
    verdict = "3 of 4 finished cells run again: equal to the last bit in results and rounds"
    assert verdict in output
    assert contents(folder) == before


def test_differences_of_cells_that_run_again_are_shown(bench: Bench) -> None:
    folder = four_cells(bench)
    append_changed(folder, "evaluations", "scores", accuracy=0.123)
    append_changed(folder, "trainings", "versions", torch="0.1")
    equal, output = again(folder, 1)
    assert not equal
    for text in (
        "accuracy",
        "torch differs: 0.1 in the first run",
        "run again: not all results are equal",
    ):
        assert text in output


def test_run_whose_grid_makes_other_cells_today_is_refused(bench: Bench) -> None:
    folder = four_cells(bench)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "cells": manifest["cells"][:1]}))
    with pytest.raises(UserError, match="lists 1 cell, and its grid makes 4"):
        again(folder, 1)


def test_attack_on_a_run_needs_no_room_for_its_cells(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", resources={"clients_per_actor": 2})
    folder = RunFolder(bench(grid).folder)
    assert len(prepared_again(folder, trust_plugin=False).trials) == 1
    with pytest.raises(UserError, match="need 2 actors at once"):
        prepared_again(folder, trust_plugin=False, runs_cells=True)


def test_a_run_that_cannot_be_repeated_is_a_mistake(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}))
    with pytest.raises(UserError, match="no finished cell can be repeated"):
        again(ran.folder, 1)
