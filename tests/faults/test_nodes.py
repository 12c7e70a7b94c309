"""Machines of a cluster: three nodes on this one, of which one dies; and what they need to be sent."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import PATIENCE
from processes import bench, environment, rounds, rows, when

from fedsim.results.grid_rows import every_row

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Machines:
    """A running cluster of three."""

    address: str
    kill: Callable[[], object]


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A head and two workers of one CPU each, in a process of their own."""
    command = [sys.executable, Path(__file__).with_name("three_nodes.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address, written = process.stdout.readline().strip(), process.stdin
        yield Machines(address, lambda: written.write("kill\n"))
        process.stdin.close()


def test_nodes_that_die_cost_no_row_and_the_grid_goes_on(
    grid: Path, machines: Machines, undisturbed: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    with bench(grid, "--address", machines.address) as process:
        when(lambda: len(rounds(grid)) > 3, process)
        machines.kill()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, ""), out + err
    assert (rows(grid), rounds(grid)) == undisturbed


SCRIPT = """
import json, sys, threading
from pathlib import Path
import ray
from cells import small_grid
from ray.experimental import get_object_locations
from rich.console import Console
from fedsim.planning.prepare import prepare
from fedsim.results.join import Lines
from fedsim.results.store import ResultStore
from fedsim.runs.bench import missing_jobs
from fedsim.runs.cluster import joined_cluster
from fedsim.runs.display import Display
from fedsim.runs.jobs import Desk
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.scheduler import Scheduler

def used():
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0.0)

with joined_cluster(sys.argv[1]) as nodes:
    grid = small_grid("weight-noise", dataset={"npz": sys.argv[2]}, seeds=list(range(9)), resources={"clients_per_actor": "all"})
    prepared = prepare(grid, nodes)
    before, most, ended = used(), [0.0], threading.Event()
    desk = Desk(prepared, ResultStore(Path(sys.argv[3])), Display(Console(quiet=True), 9))
    scheduler = Scheduler(desk, RayEngine())

    def sample():
        while not ended.wait(0.1):
            most.append(used() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    scheduler.run(missing_jobs(desk, (), Lines({}, {}, {})))
    ended.set()
    sampler.join()
    (reference,) = scheduler.data.values()
    print(json.dumps({"machines": len(get_object_locations([reference])[reference]["node_ids"]), "most": max(most)}))
"""


def test_the_data_go_once_to_each_machine(tmp_path: Path, machines: Machines) -> None:
    rng, size, dim = np.random.default_rng(0), 4000, 2000
    x = rng.standard_normal((size, dim), dtype=np.float32)
    # nearly all rows are for testing: the data are large and probes are fitted in a moment
    np.savez(tmp_path / "big.npz", x=x, y=np.arange(size) % 2, split=np.where(np.arange(size) < 200, 0, 2))
    command = [sys.executable, "-c", SCRIPT, machines.address, str(tmp_path / "big.npz"), str(tmp_path / "run")]
    tests = str(Path(__file__).parents[1])
    variables = environment(PYTHONPATH=os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]))
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=variables)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    # a machine's store holds an object once; what is counted is the first copy, and whatever a cell would have made of its own
    assert seen["machines"] == 3
    assert x.nbytes <= seen["most"] < 1.5 * x.nbytes
    assert len(every_row(tmp_path / "run")) == 9
