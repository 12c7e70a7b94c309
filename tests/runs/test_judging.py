"""Finished grids judged again: by another evaluation, by another judge, or after a crash; nothing is trained again."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import TIMES, Ran
from cells import NODES, quick, small_grid
from rich.console import Console
from sites import digits_of_sites

from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.results.rows import Row
from fedsim.results.store import Kind, ResultStore
from fedsim.runs.bench import run_judging
from fedsim.runs.engine import InProcess

Bench = Callable[..., Ran]
THREE = ("fedhypevae", "dp-gaussian", "fedavg-linear")


def judge(folder: Path, *, trust_plugin: bool = False) -> Ran:
    console = Console(file=io.StringIO(), width=200)
    code = run_judging(folder, NODES, console, nullcontext(InProcess(NODES[0])), 1, trust_plugin=trust_plugin)
    return Ran(code, console.file.getvalue(), folder)  # type: ignore[attr-defined]


def count(ran: Ran, kind: Any) -> int:
    return sum(1 for _ in ResultStore(ran.folder).lines(kind))


def judged_by(grid: Grid, **evaluation: Any) -> Grid:
    return grid.model_copy(update={"evaluation": grid.evaluation.model_copy(update=evaluation)})


def other_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the code that judges is another."""
    monkeypatch.setattr("fedsim.grid.cells.evaluation_hash", lambda: "another")
    monkeypatch.setattr("fedsim.runs.jobs.evaluation_hash", lambda: "another")


def numbers(row: Row) -> dict[str, Any]:
    """A row but for its id, the code of its judge and wall times."""
    return row.model_dump(exclude={"cell_id", "judged", *TIMES})


@pytest.mark.parametrize(
    "evaluation", [{"readouts": ("knn", "mlp", "fidelity")}, {"per_client": True}, {"personal": "synthetic"}, {"per_class": 20}]
)
def test_another_evaluation_of_a_finished_grid_judges_again_and_trains_nothing(bench: Bench, evaluation: dict[str, Any]) -> None:
    grid = small_grid(*THREE, epsilon=2.0)
    bench(grid)
    again = bench(judged_by(grid, **evaluation))
    assert "3 trained cells to be judged, without training again" in again.output
    assert (count(again, "trainings"), count(again, "judgements"), count(again, "references")) == (3, 6, 2)
    fresh = bench(judged_by(grid, **evaluation), "fresh")
    assert [row.model_dump(exclude={*TIMES}) for row in again.rows] == [row.model_dump(exclude={*TIMES}) for row in fresh.rows]


def test_a_newer_judge_judges_again_and_trains_nothing_by_the_same_command_or_by_judge(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small_grid(*THREE, epsilon=2.0)
    first = bench(grid).rows
    bench(grid, "other")
    other_judge(monkeypatch)
    for again in (bench(grid), judge(bench(grid, "other").folder)):
        assert (count(again, "trainings"), count(again, "judgements"), count(again, "references")) == (3, 6, 4)
        for a, b in zip(map(numbers, again.rows), map(numbers, first), strict=True):
            assert {k: (v, b[k]) for k, v in a.items() if v != b[k]} == {}
    assert "all 3 cells are finished" in judge(again.folder).output


def test_trainings_of_older_code_are_judged_where_judge_is_asked_to(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = bench(small_grid("dp-gaussian", "fedavg-linear", epsilon=2.0))
    before = ran.rows
    monkeypatch.setattr("fedsim.runs.worker.source_hash", lambda cls: "fedcba9876543210")
    other_judge(monkeypatch)
    again = judge(ran.folder)
    assert (again.code, count(again, "trainings"), count(again, "judgements")) == (0, 2, 4)
    assert list(map(numbers, again.rows)) == list(map(numbers, before))


def test_secret_noise_and_feature_shift_are_judged_again_too(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", partition={"scheme": "feature-shift", "strength": 1.0}, privacy={"noise": "secret"})
    before = bench(grid).rows
    again = bench(judged_by(grid, per_client=True))
    assert count(again, "trainings") == 1
    assert again.rows[0].balanced_accuracy == before[0].balanced_accuracy


@pytest.mark.slow
def test_a_bench_that_ends_after_every_write_gives_the_same_rows_by_the_same_command(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small_grid("fedhypevae", "fedavg-linear", epsilon=4.0, audit={"pairs": 20, "rounds": 1})
    whole, append, ended_after = bench(grid), ResultStore.append, list[Kind]()

    def append_and_end(store: ResultStore, kind: Kind, lines: Any) -> None:
        written = list(lines)
        append(store, kind, written)
        # after its rounds a training begins again, so only once
        if written and (kind != "rounds" or kind not in ended_after):
            ended_after.append(kind)
            raise KeyboardInterrupt

    monkeypatch.setattr(ResultStore, "append", append_and_end)
    benches = 1
    while bench(grid, "cut").code == INTERRUPTED:
        benches += 1
        assert benches < 100
    cut = bench(grid, "cut")
    assert (benches - 1, set(ended_after)) == (len(ended_after), {"rounds", "trainings", "judgements", "references", "audits", "pairs"})
    assert [row.model_dump(exclude={*TIMES}) for row in cut.rows] == [row.model_dump(exclude={*TIMES}) for row in whole.rows]
    assert cut.rounds == whole.rounds
    once = set(ended_after) - {"rounds"}
    assert {kind: count(cut, kind) for kind in once} == {kind: count(whole, kind) for kind in once}


def test_what_a_training_left_and_is_not_what_was_noted_is_an_error_that_says_what_to_do(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", epsilon=2.0)
    ran = bench(grid)
    (state,) = (ran.folder / "trained").iterdir()
    state.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"is not what was saved .*; remove it; the same command trains again"):
        bench(judged_by(grid, per_class=20))
    state.unlink()
    again = bench(judged_by(grid, per_class=20))
    assert (again.code, count(again, "trainings")) == (0, 2)


LEAVES = """
from pathlib import Path

from baselines.dp_gaussian import DPGaussian


class Leaves(DPGaussian):
    def generator(self, *given):
        if Path({mark!r}).exists():
            raise SystemExit("enough")
        return super().generator(*given)
"""


def test_a_judgement_that_fails_is_the_cells_error_and_is_tried_again_alone(bench: Bench, plugins: Path, tmp_path: Path) -> None:
    mark = tmp_path / "leave"
    (plugins / "leaves.py").write_text(LEAVES.format(mark=str(mark)))
    grid = small_grid({"name": "leaves.py:Leaves"})
    assert bench(grid).code == 0
    mark.touch()
    judged = judged_by(grid, per_class=20)
    (plugins / "leaves.py").write_text(LEAVES.format(mark=str(mark)))
    failed = judge_with(judged, bench, tmp_path)
    assert failed.code == 1
    (row,) = failed.rows
    assert (row.status, row.error and row.error.message) == ("failed", "the algorithm called sys.exit('enough'), which a cell may not")
    mark.unlink()
    again = bench(judged, retry_failed=True)
    assert (again.code, count(again, "trainings")) == (0, 1)


def judge_with(grid: Grid, bench: Bench, tmp_path: Path) -> Ran:
    """The grid by what its trainings left; a rehearsal would call the generator, too."""
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"grid": grid.model_dump(mode="json")}))
    return judge(tmp_path / "run", trust_plugin=True)


def refused(folder: Path) -> str:
    before = (folder / "judgements.jsonl").read_text()
    with pytest.raises(UserError) as error:
        judge(folder)
    assert (folder / "judgements.jsonl").read_text() == before
    return str(error.value)


def test_a_run_without_tensors_or_with_other_data_says_so_and_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    with np.load(digits_of_sites(tmp_path), allow_pickle=False) as file:
        arrays = dict(file)
    grid = small_grid(quick("dp-gaussian"), dataset={"npz": str(tmp_path / "sites.npz"), "overlap": "keep"})
    kept = bench(grid, "kept").folder
    bare = bench(grid.model_copy(update={"resources": grid.resources.model_copy(update={"save_generators": False})}), "bare").folder
    assert "no training's tensors are kept here, so nothing can be judged" in refused(bare)
    np.savez(tmp_path / "sites.npz", **arrays | {"x": arrays["x"] * 0.5 + 0.1})
    assert "the content of data set 'sites' is not that of its trainings" in refused(kept)
    (kept / "manifest.json").write_text("{}")
    assert "manifest.json: has no grid that this version reads" in refused(kept)
    (kept / "manifest.json").unlink()
    assert "manifest.json: is not there; restore it" in refused(kept)
