import inspect
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from benches import PATIENCE

from fedsim.runs import cluster  # isort: skip (it sets what Ray reads as it is imported)
from ray._private import node, ray_constants, worker

CLUSTER = """
import sys, time
from contextlib import suppress
from pathlib import Path
from fedsim.runs.cluster import local_cluster
from fedsim.planning.node import Node

with local_cluster(Node(1.0, 0.0)):
    print("started", flush=True)
    sys.stdin.read()
"""


def listening(of: set[int]) -> set[str]:
    """Addresses on which the processes listen for TCP, by /proc."""
    sockets = set()
    for pid in of:
        with suppress(OSError):  # a process or its file may end meanwhile
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(os.readlink(link))
    found = set()
    for table, family, size in (("tcp", socket.AF_INET, 8), ("tcp6", socket.AF_INET6, 32)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = [bytes.fromhex(fields[1][place : place + 8])[::-1] for place in range(0, size, 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


def descendants(of: int) -> set[int]:
    """A process and all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


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


def test_a_local_cluster_listens_on_this_machine_alone_removes_what_a_killed_driver_left_and_leaves_nothing(short: Path) -> None:
    with driver() as killed:
        (left,) = short.iterdir()
        below = descendants(killed.pid) - {killed.pid}
    assert left.exists()
    for pid in below:  # they end with their driver, Ray's agents after a minute
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with driver() as process:
        assert listening(descendants(process.pid)) <= {"127.0.0.1", "::ffff:127.0.0.1"}
        assert [path.name.startswith("fedsim-ray-") for path in short.iterdir() if path != left] == [True]
        process.communicate("", timeout=PATIENCE)
        assert process.returncode == 0
    assert list(short.iterdir()) == []


SIGNALLED = """
import subprocess
import ray
from fedsim.runs.cluster import local_cluster
from fedsim.runs.worker import Process
from fedsim.planning.node import Node, Share
import psutil

@ray.remote
class Actor:
    def of_a_child(self):
        Process(Share(1.0, 0.0, "cpu"))
        child = subprocess.Popen(["sleep", "1000"])
        child.terminate()
        return child.wait(10)

with local_cluster(Node(1.0, 0.0)):
    started = psutil.Process().children(recursive=True)
    services = [each for each in started if each.name() in ("raylet", "gcs_server")]
    for service in services:
        service.terminate()
    print(len(services), ray.get(Actor.remote().of_a_child.remote()))
print(sum(each.is_running() and each.status() != "zombie" for each in psutil.wait_procs(started, 3)[1]))
"""


def test_a_signal_to_all_ends_no_service_of_ray_but_what_an_actor_starts() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", str(-signal.SIGTERM), "0"]


def test_ray_still_has_the_private_names_for_which_there_is_nothing_public() -> None:
    printed = io.StringIO()
    worker.print_worker_logs({"pid": "raylet", "ip": "", "lines": ["a worker died"], "is_err": False}, printed)
    assert (printed.getvalue(), cluster.ray_worker._worker_logs_enabled) == ("", False)
    assert ray_constants.ENABLE_RAY_CLUSTER is True
    assert "allow_graceful" in inspect.signature(node.Node.kill_all_processes).parameters
    assert hasattr(worker, "_global_node")
