"""Placement on two GPUs by count: shares and packing."""

from collections.abc import Callable
from typing import Any

import pytest
import ray
from benches import Ran, taken, wait_until
from cells import WITH_GPUS, small_grid

from fedsim.errors import UserError
from fedsim.planning.node import Share
from fedsim.planning.prepare import prepare
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.slots import Slots

Bench = Callable[..., Ran]
HALF, THIRD = Share(1.0, 0.5), Share(1.0, 0.3)


def free_gpus() -> float:
    return ray.available_resources().get("GPU", 0.0)


def scores(ran: Ran) -> dict[str, Any]:
    return {row.cell_id: (row.status, row.value("accuracy"), row.value("macro_f1")) for row in ran.rows}


def test_slots_share_gpus_and_are_kept_for_cells_of_their_shape(ray_cluster: None) -> None:
    slots = Slots(RayEngine(), tuple(WITH_GPUS), 4)
    try:
        pair, other = taken(slots, 2, HALF), taken(slots, 2, HALF)
        ray.get([slot.held.group.ready() for slot in (pair, other)])
        wait_until(lambda: free_gpus() == 0)
        assert slots.take(1, HALF) is None
        slots.give_back(pair)
        assert slots.take(2, HALF) is pair
        slots.give_back(pair)
        slots.give_back(other)
        third = taken(slots, 1, THIRD)
        assert slots.idle == []
        ray.get(third.held.group.ready())
    finally:
        slots.close()
    wait_until(lambda: free_gpus() == WITH_GPUS[0].gpus)


@pytest.mark.slow
def test_a_cell_on_shares_of_gpus_gives_the_row_that_it_gives_in_one_process(bench: Bench, ray_bench: Bench) -> None:
    without = bench(small_grid("fedhypevae", "dp-gaussian", epsilon=4.0), "without")
    halves = {"gpus_per_actor": 0.5, "clients_per_actor": 2}
    assert (
        scores(ray_bench(small_grid("dp-gaussian", epsilon=4.0, resources=halves), "halves", nodes=WITH_GPUS)).items()
        <= scores(without).items()
    )


def test_a_cell_whose_shares_do_not_fit_at_once_is_refused_before_anything_runs() -> None:
    whole = {"gpus_per_actor": 1, "clients_per_actor": 1}
    with pytest.raises(UserError, match=r"^resources.clients_per_actor: 4 clients need 4 actors at once and the cluster has room for 2"):
        prepare(small_grid("dp-gaussian", resources=whole), WITH_GPUS)
