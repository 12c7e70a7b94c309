"""Starts benches as processes, and finds their Ray processes and their results."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from benches import TIMES, interruptible
from rows import values_of

from fedsim.results.join import read_results

FEDSIM = Path(sys.executable).with_name("fedsim")
GRID = """
dataset: {name: digits, limit: 200}
algorithms: [{name: fedavg-cvae, params: {rounds: 60}}, dp-gaussian]
clients: 4
alpha: 1.0
epsilon: 4
seeds: [0, 1, 2]
evaluation: {per_class: 10}
resources: {clients_per_actor: all}
"""
"""Six cells, more than are run without Ray; three of them take a while."""


@contextmanager
def bench(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a bench of ``g.yaml`` in its own process group until the end of the block."""
    process = subprocess.Popen(
        [FEDSIM, "bench", "--grid", "g.yaml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=interruptible,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def when(holds: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Return what ``holds`` returns once that is true, while a process runs."""
    end = time.monotonic() + 120
    while not (found := holds()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "not within 120 s"
        time.sleep(0.02)
    return found


def offspring(pid: int, *names: str) -> list[psutil.Process]:
    """Return all descendants of a process, or those with one of ``names`` in their command."""
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        try:
            line = " ".join(each.cmdline())
        except psutil.Error:
            continue
        if not names or any(name in line for name in names):
            found.append(each)
    return found


def wait_for_the_end_of(processes: list[psutil.Process]) -> None:
    """Return when all processes have ended; fail after ten seconds."""
    end = time.monotonic() + 10
    while left := [
        each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]:
        assert time.monotonic() < end, f"{left} not within 10 s"
        time.sleep(0.02)


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the finished results by cell, without their wall time."""
    return {row.cell_id: values_of(row, *TIMES) for row in read_results(folder / "runs" / "g").rows}


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the round records, ordered by cell and round."""
    return sorted(
        read_results(folder / "runs" / "g").rounds(),
        key=lambda record: (record["cell_id"], record["round"]),
    )


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without variables of Ray, with some variables added."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if "RAY_AUTH_TOKEN" not in variables:
        own["RAY_AUTH_MODE"] = "disabled"
    return own | variables
