"""The forecast of the memory that a grid needs, and the refusal of grids that need more."""

from dataclasses import replace
from typing import Any

import pytest
from cells import small_cells

from fedsim.errors import UserError
from fedsim.runs import memory
from fedsim.runs.bench import engine_for
from fedsim.runs.memory import (
    PROCESS,
    SENT_BYTES,
    STATISTIC_BYTES,
    check_memory,
    memory_of_cell,
    memory_of_grid,
)

EXAMPLE_BYTES = 64 * 4
"""The bytes of an embedding of the digits."""


def bytes_of_cell(name: str, **keys: Any) -> memory.CellMemory:
    """The memory of the only cell of such a grid with one method."""
    (trial,) = small_cells(name, **keys).trials
    return memory_of_cell(trial)


def give_machine(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the machine have so many bytes of memory."""
    monkeypatch.setattr(memory, "machine_memory", lambda: size)


def test_examples_grow_with_the_data() -> None:
    few = bytes_of_cell("fedhypevae", dataset={"name": "digits", "limit": 200})
    many = bytes_of_cell("fedhypevae", dataset={"name": "digits", "limit": 400})
    assert many.examples == 2 * few.examples
    assert few.examples >= 200 * EXAMPLE_BYTES


@pytest.mark.parametrize("name", ["dp-gaussian", "fedavg-linear"])
def test_a_method_that_reads_blocks_or_batches_keeps_no_copy(name: str) -> None:
    assert bytes_of_cell(name).examples == 0


def test_centralised_keeps_several_copies() -> None:
    assert bytes_of_cell("centralised").examples >= 2 * 200 * EXAMPLE_BYTES


def test_model_of_all_clients_counts() -> None:
    (few,) = small_cells("fedhypevae", clients=2).trials
    (many,) = small_cells("fedhypevae", clients=8).trials
    assert memory_of_cell(many).model > memory_of_cell(few).model > 0


def test_a_tuned_cell_needs_what_its_largest_candidate_needs() -> None:
    def needed(latents: list[int]) -> int:
        entry = {"name": "fedhypevae", "tune": {"latent": latents}}
        prepared = small_cells(entry, tune={"trials": 2})
        return memory_of_grid(prepared, in_process=False).cell.model

    assert needed([12, 400]) == needed([400, 12]) > needed([12, 13])


def statistics_of_many_classes(name: str) -> int:
    """The memory of the statistics of a cell with 1,000 classes."""
    (trial,) = small_cells(name).trials
    return memory_of_cell(replace(trial, task=replace(trial.task, classes=1000))).statistics


def test_matrices_of_all_classes_count() -> None:
    matrices = 1000 * 64**2
    with_matrices = statistics_of_many_classes("fedhypevae-warm")
    without = statistics_of_many_classes("dp-gaussian")
    assert with_matrices - without == STATISTIC_BYTES * matrices


def test_statistics_of_each_further_actor_count() -> None:
    (trial,) = small_cells("dp-gaussian").trials
    more = memory_of_cell(trial, processes=5).statistics
    beside = more - memory_of_cell(trial, processes=3).statistics
    assert beside == 2 * SENT_BYTES * (64 + 10) * 64


def test_in_process_there_is_one_cell_at_a_time() -> None:
    prepared = small_cells("dp-gaussian", seeds=[0, 1])
    here = memory_of_grid(prepared, in_process=True)
    on_workers = memory_of_grid(prepared, in_process=False)
    assert here.parallel == 1
    assert on_workers.parallel == 2
    assert on_workers.data == here.data > 0


def test_grid_that_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = small_cells("dp-gaussian")
    give_machine(monkeypatch, memory_of_grid(prepared, in_process=False).total)
    check_memory(prepared, in_process=False)


def test_fewer_cells_at_a_time_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = small_cells("dp-gaussian", seeds=[0, 1, 2, 3])
    need = memory_of_grid(prepared, in_process=False)
    give_machine(monkeypatch, need.total - need.cell.total)
    with pytest.raises(UserError, match=r"4 cells at a time .*; give `max_parallel` 3") as caught:
        check_memory(prepared, in_process=False)
    assert caught.value.exit_code == 2


def test_more_clients_an_actor_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = small_cells("dp-gaussian", resources={"clients_per_actor": 1})
    need = memory_of_grid(prepared, in_process=False)
    give_machine(monkeypatch, need.total - PROCESS)
    with pytest.raises(UserError, match="clients_per_actor: 4"):
        check_memory(prepared, in_process=False)


def test_number_of_rows_that_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = small_cells("dp-gaussian")
    need = memory_of_grid(prepared, in_process=True)
    half = (need.data + need.cell.examples) // 2
    give_machine(monkeypatch, need.total - half)
    with pytest.raises(UserError, match="limit: 100") as caught:
        check_memory(prepared, in_process=True)
    assert "a cell of dp-gaussian on digits" in str(caught.value)


def test_machine_that_is_too_small_for_any_data_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    give_machine(monkeypatch, PROCESS)
    with pytest.raises(UserError, match="use a machine with more memory"):
        check_memory(small_cells("dp-gaussian"), in_process=True)


@pytest.mark.parametrize("in_process", [True, False])
def test_grid_is_refused_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, in_process: bool
) -> None:
    prepared = small_cells("dp-gaussian", seeds=list(range(6)))
    give_machine(monkeypatch, PROCESS)
    with pytest.raises(UserError, match="this machine has 400 MiB of memory, and "):
        engine_for(prepared, in_process=in_process)


def test_memory_of_this_machine_is_known() -> None:
    assert memory.machine_memory() > 2**30
