"""Finished cells that run again: the same rows and rounds, or what differs."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Ran, run_in_process
from cells import NODES, small_grid
from rich.console import Console

from fedsim.errors import UserError
from fedsim.results.store import ResultStore
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


def test_run_again_finds_equal_results_or_shows_differences(
    bench: Bench,
) -> None:
    ran = bench(small_grid("dp-gaussian", "weight-noise", epsilon=4.0, alpha=[0.5, 1.0]))
    before = {path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()}
    equal, said = again(ran.folder, 3)
    assert (
        equal,
        "3 of 4 finished cells run again: equal to the last bit in rows and rounds" in said,
    ) == (True, True)
    assert {
        path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()
    } == before

    store = ResultStore(ran.folder)
    store.append(
        "evaluations",
        [
            line | {"scores": line["scores"] | {"accuracy": 0.123}}
            for line in store.last("evaluations").values()
        ],
    )
    store.append(
        "trainings",
        [
            line | {"versions": line["versions"] | {"torch": "0.1"}}
            for line in store.last("trainings").values()
        ],
    )
    equal, shown = again(ran.folder, 1)
    assert not equal
    assert [
        said
        for said in ("accuracy", "torch: 0.1 →", "1 of 4 finished cells run again: they differ")
        if said not in shown
    ] == []

    manifest = json.loads((ran.folder / "manifest.json").read_text())
    (ran.folder / "manifest.json").write_text(
        json.dumps({**manifest, "cells": manifest["cells"][:1]})
    )
    with pytest.raises(UserError, match="lists 1 cell, and its grid makes 4"):
        again(ran.folder, 1)


def test_a_run_that_cannot_be_repeated_is_a_mistake(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}))
    with pytest.raises(UserError, match="no finished cell can be repeated"):
        again(ran.folder, 1)
