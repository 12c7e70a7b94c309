"""Ends of a bench from outside: signals, a killed driver, a killed service of Ray; then the same
command, and the same rows.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from benches import PATIENCE, TIMES, Ran, slowness
from processes import GRID, bench, offspring, rounds, rows, wait_for_the_end_of, when
from rows import values_of

from fedsim.grid.models import Grid

pytestmark = pytest.mark.slow
CLUSTER = """
import sys
from fedsim.runs.prepare import Node
from fedsim.runs.ray import local_cluster

with local_cluster(Node(1.0, 0.0)):
    print("started", flush=True)
    sys.stdin.read()
"""
Undisturbed = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """The folder that holds the grid."""
    (tmp_path / "g.yaml").write_text(GRID)
    return tmp_path


@pytest.fixture(name="undisturbed")
def undisturbed_(bench: Callable[..., Ran]) -> Undisturbed:
    """Rows and round records of the grid, without wall time, as a bench without any fault writes
    them.
    """
    ran = bench(Grid.model_validate(yaml.safe_load(GRID)), "undisturbed")
    by_cell = {row.cell_id: values_of(row, *TIMES) for row in ran.rows}
    return by_cell, sorted(ran.rounds, key=lambda record: (record["cell_id"], record["round"]))


def trained(folder: Path) -> bool:
    """Whether a cell is in training."""
    return (folder / "runs" / "g" / "rounds.jsonl").exists()


def the_same_command_gives(undisturbed: Undisturbed, folder: Path) -> None:
    with bench(folder) as process:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), out + err
    assert (rows(folder), rounds(folder)) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_leaves_no_process_and_the_run_can_continue(
    grid: Path,
    undisturbed: Undisturbed,
    number: signal.Signals,
) -> None:
    with bench(grid) as process:
        when(lambda: trained(grid), process)
        started = offspring(process.pid)
        asked = time.monotonic()
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - asked < 5 * slowness()
        if number == signal.SIGTERM:
            assert (process.returncode, err) == (130, ""), out + err
            assert "of 6 cells finished; the same command continues" in out
        wait_for_the_end_of(started)
    the_same_command_gives(undisturbed, grid)


def test_interruption_while_ray_starts_leaves_no_process(grid: Path) -> None:
    with bench(grid) as process:
        when(lambda: offspring(process.pid, "DashboardAgent"), process)
        started = offspring(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, ""), out + err
        wait_for_the_end_of(started)


@pytest.mark.parametrize("service", ["raylet/raylet", "gcs/gcs_server"])
def test_a_killed_service_of_ray_ends_a_bench_in_order(
    grid: Path,
    undisturbed: Undisturbed,
    service: str,
) -> None:
    with bench(grid) as process:
        when(lambda: len(rows(grid)) >= 1, process)
        started = offspring(process.pid)
        (killed,) = offspring(process.pid, service)
        killed.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, out + err
        assert "the cluster is lost: " in out
        wait_for_the_end_of(started)
    the_same_command_gives(undisturbed, grid)


def listening(process: psutil.Process) -> set[str]:
    return {
        each.laddr.ip
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }


def test_local_cluster_is_private_and_ends_with_its_driver() -> None:
    for killed in (True, False):
        command = [sys.executable, "-c", CLUSTER]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            started = offspring(process.pid)
            assert any("raylet" in each.name() for each in started)
            assert set.union(*map(listening, [psutil.Process(process.pid), *started])) <= {
                "127.0.0.1",
                "::ffff:127.0.0.1",
            }
            if killed:
                process.kill()
            process.communicate("" if not killed else None, timeout=PATIENCE)
        wait_for_the_end_of(started)
