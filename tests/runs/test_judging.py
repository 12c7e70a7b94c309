"""Finished grids judged again: by another evaluation, by another judge, or after a crash; nothing is trained again."""

from collections.abc import Callable
from typing import Any

import pytest
from benches import TIMES, Ran
from cells import small_grid

from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.results.rows import Row
from fedsim.results.store import Kind, ResultStore

Bench = Callable[..., Ran]
THREE = ("fedhypevae", "dp-gaussian", "fedavg-linear")


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


def test_a_newer_judge_judges_again_and_trains_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small_grid(*THREE, epsilon=2.0)
    first = bench(grid).rows
    other_judge(monkeypatch)
    again = bench(grid)
    assert (count(again, "trainings"), count(again, "judgements"), count(again, "references")) == (3, 6, 4)
    for a, b in zip(map(numbers, again.rows), map(numbers, first), strict=True):
        assert {k: (v, b[k]) for k, v in a.items() if v != b[k]} == {}


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
