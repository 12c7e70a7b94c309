"""Signals to the command, and the end of the cluster under it."""

import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from benches import PATIENCE, interruptible, slowness
from processes import bench, offspring, rounds, rows, wait_for_the_end_of, when

pytestmark = pytest.mark.slow


def trained(folder: Path) -> bool:
    """Whether a cell is in training."""
    return (folder / "runs" / "g" / "rounds.jsonl").exists()


def test_sigterm_to_the_group_and_a_killed_raylet_end_a_bench_in_order_and_the_same_command_goes_on(
    grid: Path, undisturbed: tuple[dict[str, Any], Any]
) -> None:
    with bench(grid) as process:
        when(lambda: trained(grid), process)
        started = offspring(process.pid)
        asked = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - asked < 5 * slowness()
        assert process.returncode == 130, out + err
        assert "the same command goes on" in out
        assert err == ""
        wait_for_the_end_of(started, 10)

    with bench(grid) as process:
        when(lambda: len(rows(grid)) >= 1, process)
        started = offspring(process.pid)
        (raylet,) = offspring(process.pid, "raylet/raylet")
        raylet.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, out + err
        assert "the cluster is lost: Ray's service on this machine does not answer any more" in out
        assert "of 4 cells finished; the same command goes on" in out
        assert "report: runs/g/report.html" in out
        assert {row["status"] for row in rows(grid).values()} == {"ok"}
        wait_for_the_end_of(started, 10)

    with bench(grid) as process:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), out + err
    assert (rows(grid), rounds(grid)) == undisturbed


def test_an_interruption_while_ray_starts_leaves_none_of_its_processes(grid: Path) -> None:
    with bench(grid) as process:
        when(lambda: offspring(process.pid, "dashboard/agent.py", "DashboardAgent"), process)
        started = offspring(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, ""), out + err
        assert "the same command goes on" in out
        wait_for_the_end_of(started, 10)


def test_a_closed_terminal_ends_a_bench_in_order(grid: Path) -> None:
    outer, inner = pty.openpty()

    def own_the_terminal() -> None:
        interruptible()
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

    how = {"stdin": inner, "stdout": inner, "stderr": inner, "start_new_session": True, "process_group": None}
    with bench(grid, **how, preexec=own_the_terminal) as process:
        os.close(inner)
        os.set_blocking(outer, False)

        def read() -> bool:
            with suppress(BlockingIOError):
                os.read(outer, 2**16)
            return trained(grid)

        when(read, process)
        started = offspring(process.pid)
        asked = time.monotonic()
        os.close(outer)
        assert process.wait(PATIENCE) == 130
        assert time.monotonic() - asked < 5 * slowness()
        wait_for_the_end_of(started, 10)


@pytest.mark.parametrize(
    ("service", "what"), [("gcs/gcs_server", "the cluster's head does not answer any more"), ("DashboardAgent", "")], ids=["head", "agent"]
)
def test_a_killed_service_of_ray_ends_a_bench_in_order_and_the_same_command_goes_on(
    grid: Path, undisturbed: tuple[dict[str, Any], Any], service: str, what: str
) -> None:
    with bench(grid) as process:
        when(lambda: len(rows(grid)) >= 1, process)
        started = offspring(process.pid)
        (killed,) = offspring(process.pid, service)
        killed.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, out + err
        assert f"the cluster is lost: {what}" in out
        assert "report: runs/g/report.html" in out
        wait_for_the_end_of(started, 10)
    with bench(grid) as process:
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, ""), out + err
    assert (rows(grid), rounds(grid)) == undisturbed


def test_a_killed_driver_leaves_no_process_and_its_cells_go_on_from_their_checkpoints(
    grid: Path, undisturbed: tuple[dict[str, Any], Any]
) -> None:
    with bench(grid) as process:
        when(lambda: trained(grid), process)
        started = offspring(process.pid)
        agents = offspring(process.pid, "DashboardAgent", "RuntimeEnvAgent")
        process.kill()
        process.wait()
        wait_for_the_end_of([each for each in started if each not in agents], 10)
    done = subprocess.run(["fedsim", "bench", "--grid", "g.yaml"], cwd=grid, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (rows(grid), rounds(grid)) == undisturbed
    wait_for_the_end_of(agents, 90)  # a minute: Ray's agents wait for the head that is gone
