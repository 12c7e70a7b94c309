import io
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from benches import Done, Ran
from cells import NODES, small_grid
from rich.console import Console

from fedsim.errors import UserError
from fedsim.results.store import ResultStore
from fedsim.runs.bench import run_bench
from fedsim.runs.engine import InProcess
from fedsim.runs.need import Node
from fedsim.runs.prepare import prepare
from fedsim.runs.verify import Verification

Bench = Callable[..., Ran]
HERE = nullcontext(InProcess(NODES[0]))


def verified(folder: Path, cells: int, *, trust_plugin: bool = False) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    verification = Verification.of(folder, lambda grid: prepare(grid, NODES, 1), trust_plugin=trust_plugin)
    equal = verification.run(cells, console, HERE)
    return equal, console.file.getvalue()  # type: ignore[attr-defined]


def trainings(folder: Path) -> list[dict[str, Any]]:
    return list(ResultStore(folder).last("trainings").values())


def forge(folder: Path, line: dict[str, Any], **fields: Any) -> None:
    """Add a training's line again, with another value at ``part__field``."""
    forged = deepcopy(line)
    for place, value in fields.items():
        *parts, name = place.split("__")
        inside = forged
        for part in parts:
            inside = inside[part]
        inside[name] = value
    ResultStore(folder).append("trainings", [forged])


@pytest.fixture(scope="module")
def ran_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of six finished cells, not to be changed."""
    folder = tmp_path_factory.mktemp("once") / "run"
    run_bench(prepare(small_grid("dp-gaussian", epsilon=4.0, seeds=list(range(6))), NODES, 1), folder, Console(quiet=True), HERE)
    return folder


def test_cells_that_run_again_give_the_same_rows_and_rounds_or_what_differs_is_shown_with_exit_code_1(
    bench: Bench, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.runs.prepare.this_machine", lambda: Node(1.0, 0.0))
    monkeypatch.setattr("fedsim.runs.ray.local_ray", lambda node: HERE)
    ran = bench(small_grid("dp-gaussian", "weight-noise", epsilon=4.0, alpha=[0.5, 1.0]))
    before = {path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()}
    done = command("verify", str(ran.folder), "--rerun", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 4 finished cells run again: equal to the last bit in rows and rounds" in done.stdout
    assert {path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()} == before

    store = ResultStore(ran.folder)
    store.append("judgements", [line | {"scores": line["scores"] | {"accuracy": 0.123}} for line in store.last("judgements").values()])
    store.append("trainings", [line | {"versions": line["versions"] | {"torch": "0.1"}} for line in store.last("trainings").values()])
    done = command("verify", str(ran.folder), "--cell", "xyz")
    assert (done.returncode, "--cell: no cell that can be repeated has the id 'xyz'; known: " in done.stderr) == (2, True)
    done = command("verify", str(ran.folder), "--rerun", "1")
    assert (done.returncode, done.stderr) == (1, "")
    for said in ("accuracy", "torch: 0.1 →", "1 of 4 finished cells run again: they differ"):
        assert said in done.stdout


def test_rows_of_another_grid_in_the_folder_are_not_taken_for_those_of_the_last(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian"))
    (row,), (line,) = ran.rows, trainings(ran.folder)
    forge(ran.folder, line, training_id="1" * 16, cell__cell_id="1" * 16, cell__seed=7)
    verification = Verification.of(ran.folder, lambda grid: prepare(grid, NODES, 1))
    assert [row.cell_id for row, _ in verification.cells] == [row.cell_id]
    forge(ran.folder, line, training_id="0" * 16, cell__cell_id="0" * 16, cell__source="1" * 16)
    equal, said = verified(ran.folder, 1)
    assert equal
    assert "1 of 3 finished cells run again: equal to the last bit" in said
    assert "2 of 3 cannot be repeated: not of the last grid: 1; of other code: 1" in said


FORGED: dict[tuple[str, Any], str] = {
    ("cell__noise", "secret"): "noise is secret, by its grid seeded",
    ("cell__unit", "client"): "unit is client, by its grid example",
    ("plan__trust", "silo"): "trust is silo, by its grid aggregate",
    ("plan__delta", 1e-9): "delta is 1e-09, by its grid 0.0001",
    ("plan__epsilon_target", 8.0): "epsilon_target is 8.0, by its grid 4.0",
}


def test_a_row_that_says_otherwise_than_its_grid_is_a_difference(ran_once: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ran_once, tmp_path / "forged"))
    lines = trainings(folder)
    for line, (place, value) in zip(lines, FORGED, strict=False):
        forge(folder, line, **{place: value})
    equal, shown = verified(folder, len(lines))
    assert not equal
    assert [said for said in FORGED.values() if said not in shown] == []
    assert "1 of 6 finished cells run again: equal to the last bit" in shown
    assert "5 of 6 differ from the grid" in shown

    forge(folder, lines[-1], cell__noise="secret")
    equal, shown = verified(folder, 1)
    assert (equal, "6 of 6 differ from the grid" in shown, "run again" in shown) == (False, True, False)


def test_a_manifest_whose_cells_are_not_those_of_its_grid_is_a_mistake(ran_once: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ran_once, tmp_path / "forged"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cells": manifest["cells"][:1]}))
    with pytest.raises(UserError, match="lists 1 cell, and its grid makes 6"):
        verified(folder, 1)


def test_cells_are_chosen_by_the_beginnings_of_their_ids_or_drawn(ran_once: Path) -> None:
    verification = Verification.of(ran_once, lambda grid: prepare(grid, NODES, 1))
    first, *_, last = (row.cell_id for row, _ in verification.cells)
    assert verification.chosen(3, [last[:12], first]) == [0, 5]
    assert len(set(verification.chosen(3))) == 3


def test_a_run_that_cannot_be_repeated_is_a_mistake(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no results here"):
        verified(tmp_path / "none", 1)
    ran = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}))
    with pytest.raises(UserError, match="no finished cell can be repeated; secret noise: 1"):
        verified(ran.folder, 1)
