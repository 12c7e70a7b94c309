"""The cluster of one bench: whom it listens to, and that nothing of it is left, however its driver ends."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from benches import PATIENCE
from processes import offspring, wait_for_the_end_of

CLUSTER = """
import sys
from fedsim.runs.cluster import local_cluster
from fedsim.planning.node import Node

with local_cluster(Node(1.0, 0.0)):
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="fs", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def driver() -> Iterator[subprocess.Popen[str]]:
    """A process with a local cluster."""
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.wait()


def listening(process: psutil.Process) -> set[str]:
    return {each.laddr.ip for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}


def test_a_local_cluster_listens_on_this_machine_alone_and_is_gone_with_its_driver(short: Path) -> None:
    with driver() as killed:
        (left,) = short.iterdir()
        started = offspring(killed.pid)
        assert any("raylet" in each.name() for each in started)
    wait_for_the_end_of(started, 10)
    with driver() as process:
        started = offspring(process.pid)
        assert set.union(*map(listening, [psutil.Process(process.pid), *started])) <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert [path.name.startswith("fedsim-ray-") for path in short.iterdir()] == [True]
        assert not left.exists()
        process.communicate("", timeout=PATIENCE)
        assert process.returncode == 0
    wait_for_the_end_of(started, 1)
    assert list(short.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("service", ["raylet/raylet", "gcs/gcs_server"])
def test_a_cluster_that_lost_its_head_leaves_no_process(short: Path, service: str) -> None:
    with driver() as process:
        started = offspring(process.pid)
        (lost,) = offspring(process.pid, service)
        lost.send_signal(signal.SIGKILL)
        process.communicate("", timeout=PATIENCE)
        wait_for_the_end_of(started, 10)
