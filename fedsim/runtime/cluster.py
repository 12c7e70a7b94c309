"""Ray as the engine: start a local cluster or join one, quietly, and end it with the driver."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import torch

from fedsim.errors import UserError

# Ray reads these as it is imported and hands them to what it starts: no usage report to anyone, no warning about idle GPUs, a model of up
# to 1 MiB travels in the call itself, in a third of the object store's time, and worker processes import torch while Ray still starts.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_max_direct_call_object_size", str(2**20))
os.environ.setdefault("RAY_preload_python_modules", "fedsim.runtime.worker")

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from fedsim.simulation.node import Node

# The switch of Ray's debugger: no line of Ray's own comes between a bench's, which say of a lost worker what there is to say.
ray_worker._worker_logs_enabled = False

_SESSIONS = "fedsim-ray-"
_LONGEST = 24
"""Characters of a temporary folder's path that leave room for Ray's below it, in the 107 that a socket's may have."""


def this_machine() -> Node:
    """This machine, as far as this process may use it (affinity, container limits, visible GPUs)."""
    cards = [torch.cuda.get_device_properties(card).total_memory for card in range(torch.cuda.device_count())]
    return Node(float(joblib.cpu_count()), float(len(cards)), float(min(cards, default=0)))


@contextmanager
def local_cluster(node: Node) -> Iterator[None]:
    """A Ray cluster of one node for the block, for this machine alone; its processes end with this one, however it ends."""
    with _sessions() as folder:
        with _loopback():
            _connect("local", num_cpus=int(node.cpus), num_gpus=int(node.gpus), include_dashboard=False, _temp_dir=str(folder))
        with _connected():
            yield


@contextmanager
def _loopback() -> Iterator[None]:
    """A cluster that starts in the block listens on 127.0.0.1 only, as Ray's do on systems where it has no clusters of machines."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _sessions() -> Iterator[Path]:
    """A folder for Ray's sockets and logs, gone after the block; those of drivers that were killed are removed, too."""
    above = Path(tempfile.gettempdir())
    if len(str(above)) > _LONGEST:  # a socket's path has an end
        above = Path("/tmp")
    for lock in above.glob(f"{_SESSIONS}*/lock"):
        with suppress(OSError), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SESSIONS, dir=above))
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_cluster(address: str) -> Iterator[list[Node]]:
    """The running cluster at ``address`` (``host:port``, or ``auto`` for one on this machine) for the block; yields its nodes.

    Raises:
        UserError: there is no cluster.
    """
    if address != "auto":
        _check_listening(address)
    try:
        _connect(address)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--address {address}", "no Ray cluster runs there", "start one with `ray start --head`") from error
    with _connected():
        offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        yield [Node(float(offer.get("CPU", 0)), float(offer.get("GPU", 0))) for offer in offers]


def _check_listening(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"--address {address}", "is not host:port", "give the address that `ray start --head` shows, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}", f"cannot be reached ({error})", "give a running cluster's host:port") from error


def _connect(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _connected() -> Iterator[None]:
    """Disconnects at the end of the block, which SIGTERM and a lost terminal end as Ctrl-C does (Ray took SIGTERM for itself)."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
