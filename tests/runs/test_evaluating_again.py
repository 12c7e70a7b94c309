"""Finished grids that are evaluated anew, and benches that end early: nothing is trained again."""

from collections.abc import Callable
from typing import Any

import pytest
from benches import TIMES, Ran
from cells import small_grid
from rows import values_of

from fedsim.grid.models import Grid
from fedsim.interrupts import INTERRUPTED
from fedsim.results.store import Kind, ResultStore

Bench = Callable[..., Ran]


def count(ran: Ran, kind: Kind) -> int:
    return len(list(ResultStore(ran.folder).lines(kind)))


def evaluated_by(grid: Grid, **evaluation: Any) -> Grid:
    return grid.model_copy(update={"evaluation": grid.evaluation.model_copy(update=evaluation)})


def rows(ran: Ran) -> list[dict[str, Any]]:
    return [values_of(row, *TIMES) for row in ran.rows]


def test_new_evaluation_of_a_finished_grid_trains_nothing(bench: Bench) -> None:
    """Under secret noise and with features of its own for every client, too."""
    grid = small_grid(
        "dp-gaussian",
        "fedavg-linear",
        partition={"scheme": "feature-shift"},
        privacy={"noise": "secret"},
    )
    before = bench(grid).rows
    again = bench(evaluated_by(grid, per_client=True))
    assert "2 trained cells to be evaluated, without training again" in again.output
    assert count(again, "trainings") == 2
    assert count(again, "evaluations") == 4
    assert count(again, "references") == 2
    scores = [row.balanced_accuracy for row in before]
    assert [row.balanced_accuracy for row in again.rows] == scores


def test_new_evaluation_gives_the_results_of_a_fresh_run(bench: Bench) -> None:
    grid = small_grid("dp-gaussian")
    bench(grid, "seeded")
    other = evaluated_by(grid, per_class=20)
    assert rows(bench(other, "seeded")) == rows(bench(other, "fresh"))


@pytest.mark.slow
def test_bench_cut_after_every_write_gives_the_same_results(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small_grid("fedhypevae", "fedavg-linear", epsilon=4.0, audit={"pairs": 20, "rounds": 1})
    append = ResultStore.append
    ended_after: list[Kind] = []
    cuts = False

    def append_and_end(store: ResultStore, kind: Kind, lines: Any) -> None:
        written = list(lines)
        append(store, kind, written)
        # A training begins again after its rounds, so it is cut there only once.
        if cuts and written and (kind != "rounds" or kind not in ended_after):
            ended_after.append(kind)
            raise KeyboardInterrupt

    # Both benches run with the replaced function, because it lowers the claim to "stated".
    monkeypatch.setattr(ResultStore, "append", append_and_end)
    whole = bench(grid)
    cuts = True
    benches = 0
    while bench(grid, "cut").code == INTERRUPTED:
        benches += 1
        assert benches < 100
    cut = bench(grid, "cut")
    assert benches == len(ended_after)
    kinds = set(ended_after)
    assert kinds == {"rounds", "trainings", "evaluations", "references", "audits", "pairs"}
    assert rows(cut) == rows(whole)
    assert cut.rounds == whole.rounds
    for kind in kinds - {"rounds"}:
        assert count(cut, kind) == count(whole, kind)
