import io
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from benches import Done, Ran
from cells import NODES, small_grid
from plug_ins import changed
from rich.console import Console

from fedsim.errors import UserError
from fedsim.results.store import ResultStore
from fedsim.runtime.bench import run_bench
from fedsim.runtime.judging import run_judging
from fedsim.runtime.verify import Verification
from fedsim.simulation.node import Node
from fedsim.simulation.preflight import prepare

Bench = Callable[..., Ran]


def verified(folder: Path, cells: int, *, trust_plugin: bool = False) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    verification = Verification.of(folder, lambda grid: prepare(grid, NODES, 1), trust_plugin=trust_plugin)
    equal = verification.run(cells, console, nullcontext())
    return equal, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def ran_once(_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of six finished cells, not to be changed."""
    folder = tmp_path_factory.mktemp("once") / "run"
    run_bench(prepare(small_grid("dp-gaussian", epsilon=4.0, seeds=list(range(6))), NODES, 1), folder, Console(quiet=True), nullcontext())
    return folder


def test_cells_that_run_again_give_the_same_rows_and_rounds_or_what_differs_is_told_with_exit_code_1(
    bench: Bench, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.runtime.cluster.this_machine", lambda: Node(1.0, 0.0))
    monkeypatch.setattr("fedsim.runtime.cluster.local_cluster", lambda node: nullcontext())  # the bench's still runs
    ran = bench(small_grid("dp-gaussian", "weight-noise", epsilon=[4.0, float("inf")]))
    before = {path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()}
    done = command("verify", str(ran.folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 4 finished cells run again: equal to the last bit in rows and rounds" in done.stdout
    assert {path.name: path.read_bytes() for path in ran.folder.iterdir() if path.is_file()} == before

    for row in ran.rows:
        scores = dict(row.scores) | {"accuracy": 0.123}
        ResultStore(ran.folder).append(row.model_copy(update={"scores": scores, "versions": row.versions | {"torch": "0.1"}}))
    done = command("verify", str(ran.folder), "--cells", "1")
    assert (done.returncode, done.stderr) == (1, "")
    for said in ("accuracy", "torch: 0.1 →", "1 of 4 finished cells run again: they differ"):
        assert said in done.stdout


def test_a_run_that_left_a_plug_in_out_is_verified_without_it(ray_cluster: None, plugins: Path, tmp_path: Path) -> None:
    (plugins / "no_clip.py").write_text(changed("    def draws(self)", "    def clip(self):\n        return 1 / 0\n\n    def draws(self)"))
    grid = small_grid({"name": "no_clip.py:MyMethod", "params": {"rounds": 1}}, "dp-gaussian", epsilon=4.0)
    prepared = prepare(grid, NODES, 1, keep_going=True)
    assert list(prepared.refused) == [0]
    run_bench(prepared, tmp_path / "run", Console(quiet=True), nullcontext())
    verification = Verification.of(tmp_path / "run", lambda grid: prepare(grid, NODES, 1), trust_plugin=True)
    assert verification.run(1, Console(quiet=True), nullcontext())

    store = ResultStore(tmp_path / "run")
    store.append(store.rows()[0].model_copy(update={"cell_id": "0" * 16, "algorithm": "no_clip.py:MyMethod"}))
    equal, said = verified(tmp_path / "run", 1, trust_plugin=True)
    assert equal
    assert "1 of 2 cannot be repeated: of a refused algorithm: 1" in said


def test_rows_of_another_grid_in_the_folder_are_not_taken_for_those_of_the_last(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian"))
    store, own = ResultStore(ran.folder), list(ran.rows)
    for row in own:
        other = {"cell_id": f"{row.cell_id}0", "evaluation": {**(row.evaluation or {}), "per_class": 7}}
        store.append(row.model_copy(update={**other, "scores": dict(row.scores) | {"accuracy": 0.123}}))
    verification = Verification.of(ran.folder, lambda grid: prepare(grid, NODES, 1))
    assert [row.cell_id for row, _ in verification.cells] == [row.cell_id for row in own]
    store.append(own[0].model_copy(update={"cell_id": "0" * 16, "source": "1" * 16}))
    equal, said = verified(ran.folder, 1)
    assert equal
    assert "1 of 3 finished cells run again: equal to the last bit" in said
    assert "2 of 3 cannot be repeated: not of the last grid: 1; of other code: 1" in said


FORGED = {
    ("noise", "secret"): "noise is secret, by its grid seeded",
    ("unit", "client"): "unit is client, by its grid example",
    ("trust", "silo"): "trust is silo, by its grid aggregate",
    ("delta", 1e-9): "delta is 1e-09, by its grid 0.0001",
    ("epsilon_target", 8.0): "epsilon_target is 8.0, by its grid 4.0",
}


def test_a_row_that_says_otherwise_than_its_grid_is_a_difference(ran_once: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ran_once, tmp_path / "forged"))
    store = ResultStore(folder)
    rows = store.rows()
    for row, (field, value) in zip(rows, FORGED, strict=False):
        store.append(row.model_copy(update={field: value}))
    equal, shown = verified(folder, len(rows))
    assert not equal
    assert [said for said in FORGED.values() if said not in shown] == []
    assert "1 of 6 finished cells run again: equal to the last bit" in shown
    assert "5 of 6 differ from the grid" in shown

    store.append(rows[-1].model_copy(update={"noise": "secret"}))
    equal, shown = verified(folder, 1)
    assert (equal, "6 of 6 differ from the grid" in shown, "run again" in shown) == (False, True, False)


def test_a_manifest_whose_cells_are_not_those_of_its_grid_is_a_mistake(ran_once: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ran_once, tmp_path / "forged"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "cells": manifest["cells"][:1]}))
    with pytest.raises(UserError, match="lists 1 cell, and its grid makes 6"):
        verified(folder, 1)


def test_an_audited_row_is_compared_as_its_cell_made_it(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", audit={"pairs": 20, "rounds": 1}))
    assert ran.rows[0].audit_pairs == 20
    assert verified(ran.folder, 1)[0]


def test_a_run_that_cannot_be_repeated_is_a_mistake(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no results.jsonl here"):
        verified(tmp_path / "none", 1)
    ran = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}))
    with pytest.raises(UserError, match="no finished cell can be repeated; secret noise: 1"):
        verified(ran.folder, 1)


def test_code_that_a_run_folder_names_runs_only_if_it_is_trusted(bench: Bench, tmp_path: Path) -> None:
    marker, evil = tmp_path / "ran", tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w').close()\n")
    ran = bench(small_grid("dp-gaussian"))
    manifest = ran.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "dp-gaussian"', f'"name": "{evil}:X"'))
    (row,) = ran.rows
    ResultStore(ran.folder).append(row.model_copy(update={"algorithm": f"{evil}:X", "judged": "old"}))
    for look in (lambda: verified(ran.folder, 1), lambda: run_judging(ran.folder, NODES, Console(file=io.StringIO()), nullcontext())):
        with pytest.raises(UserError, match="whose code would run; give --trust-plugin if you trust that code"):
            look()
    assert not marker.exists()
