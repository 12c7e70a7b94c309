import io
import re
from typing import Any

import pytest
from cells import NODES, WITH_GPUS, small_cells, small_grid
from rich.console import Console

from fedsim.errors import UserError
from fedsim.planning.node import Node
from fedsim.planning.prepare import least, prepare
from fedsim.report.plan_table import show_plan


def test_the_least_that_an_actor_needs_are_its_rows_and_its_parameters_with_their_optimiser() -> None:
    prepared = small_cells("fedavg-linear", clients=1)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    rows, parameters = least(trial, data)
    assert rows == 2 * len(data.x_train) * (4 * data.dim + 8)
    assert parameters == 16 * (data.dim + 1) * data.classes
    (apart,) = small_cells("fedavg-linear", clients=4, resources={"clients_per_actor": 1}).trials
    most = max(map(len, apart.partition.rows))
    assert most > len(apart.partition.rows[0])
    assert least(apart, data)[0] == (len(data.x_train) + most) * (4 * data.dim + 8)


def test_mistakes_in_gpus_are_told_with_the_arithmetic_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"^resources: an actor needs 1 CPU and 0.5 GPUs; no node has them \(4 CPUs and 0 GPUs\)"):
        prepare(small_grid("dp-gaussian", resources={"gpus_per_actor": 0.5}), NODES)
    with pytest.raises(ValueError, match="device: cuda with gpus_per_actor: 0 leaves actors without a GPU"):
        small_grid("dp-gaussian", resources={"device": "cuda"})
    with pytest.raises(ValueError, match=r"1\.5 is not a share of a GPU; give a number in \[0, 1\]"):
        small_grid("dp-gaussian", resources={"gpus_per_actor": 1.5})
    told = r"^resources: an actor of fedhypevae with a client needs at least .* for rows and .* for parameters, .* GiB; 0.25 of a GPU"
    with pytest.raises(UserError, match=told) as error:
        prepare(small_grid("fedhypevae", resources={"gpus_per_actor": 0.25}), [Node(4.0, 1.0, 2.0**18)])
    rows, parameters, needed, card, room = (float(n) for n in re.findall(r"([\d.e-]+) GiB", str(error.value)))
    assert rows + parameters == pytest.approx(needed, rel=1e-2)
    assert room == pytest.approx(0.25 * card, rel=1e-2)
    assert needed > room
    assert prepare(small_grid("fedhypevae", resources={"gpus_per_actor": 0.25, "device": "cpu"}), [Node(4.0, 1.0, 2.0**18)]).trials


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"gpus_per_actor": 0.5, "cpus_per_actor": 0.5}, "4 cells at a time, 0.5 CPUs and 0.5 GPUs an actor, on the GPU"),
        ({"gpus_per_actor": 0.5, "device": "cpu"}, "4 cells at a time, 1 CPU and 0.5 GPUs an actor, on the CPU"),
        ({}, "4 cells at a time, 1 CPU and 0 GPUs an actor, on the CPU"),
    ],
)
def test_a_dry_run_tells_shares_devices_and_cells_at_a_time(resources: dict[str, Any], told: str) -> None:
    console = Console(file=io.StringIO(), width=200)
    show_plan(prepare(small_grid("dp-gaussian", resources=resources), WITH_GPUS), console)
    assert told in console.file.getvalue()  # type: ignore[attr-defined]
