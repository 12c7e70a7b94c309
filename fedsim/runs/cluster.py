"""Ray as the engine: start a local cluster or join one, quietly, notice when it is gone, and end it with the driver."""

from __future__ import annotations

import atexit
import fcntl
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import torch

# Ray reads these as it is imported and hands them to what it starts: no usage report to anyone, no warning about idle GPUs, a model of up
# to 1 MiB travels in the call itself, in a third of the object store's time, worker processes import torch while Ray still starts, and a
# signal is heard within 0.1 s of any wait.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_max_direct_call_object_size", str(2**20))
os.environ.setdefault("RAY_preload_python_modules", "fedsim.runs.actors")
os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")
# Within `ray job submit --working-dir` what a plug-in needs travels, too, in place of the job's folder.
os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
# `ray start` protects a cluster by the token of its machine if there is one; a driver that joins by address must set the mode itself.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

import psutil  # isort: skip (Ray brings it along)

from fedsim.errors import RunLost, UserError
from fedsim.interrupts import INTERRUPTED, at_a_late_end, interrupts
from fedsim.planning.node import Node
from fedsim.runs.engine import ClusterLost

_SESSIONS = "fedsim-ray-"
_LONGEST = 23
"""Bytes of a temporary folder's path that leave room for Ray's below it, in the 107 that a socket's may have."""
LEAVING = 2.0
"""Seconds in which Ray may end by itself after an interruption or a loss."""


# What no public API of Ray does, all of it here; test_cluster.py fails if an upgrade changes it.

# The switch of Ray's debugger: no line of Ray's own comes between a bench's, which report a lost worker themselves.
ray_worker._worker_logs_enabled = False


@contextmanager
def _loopback() -> Iterator[None]:
    """A cluster that starts in the block listens on 127.0.0.1 only: `_node_ip_address` leaves Ray's servers open to the network."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _end_at_once() -> None:
    """Have Ray kill its services, which block SIGTERM, and with them the agents they started, which would stay for a minute."""
    services: Any = ray_worker._global_node
    kill = services.kill_all_processes

    def kill_all(**how: Any) -> None:
        started = [process for service in _raylets() for process in service.children(recursive=True)]
        kill(**how | {"allow_graceful": False})
        _kill(started)

    services.kill_all_processes = kill_all


def this_machine() -> Node:
    """This machine, as far as this process may use it (affinity, container limits, visible GPUs)."""
    cards = [torch.cuda.get_device_properties(card).total_memory for card in range(torch.cuda.device_count())]
    return Node(float(joblib.cpu_count()), float(len(cards)), float(min(cards, default=0)))


@contextmanager
def local_cluster(node: Node) -> Iterator[None]:
    """A Ray cluster of one node for the block, for this machine alone; its processes end with this one, however it ends.

    Raises:
        UserError: this process, such as a notebook's, is connected to another one.
    """
    if ray.is_initialized():
        raise UserError("Ray", "runs in this process already", "end it with `ray.shutdown()` first, which ends what it computes, too")
    with _sessions() as folder:
        with _started_whole_or_ended(), _loopback(), _deaf():
            _start(node, folder)
        with _connected():
            yield


def _start(node: Node, folder: Path) -> None:
    try:
        _connect("local", num_cpus=int(node.cpus), num_gpus=int(node.gpus), include_dashboard=False, _temp_dir=str(folder))
    except Exception as error:  # Ray raises plain ones
        what = " ".join(str(error).split()) or type(error).__name__
        raise RunLost("Ray", f"did not start ({what})", "free memory or processes; the same command tries again") from error
    _end_at_once()


@contextmanager
def _started_whole_or_ended() -> Iterator[None]:
    """If the block fails, kill the processes it started; Ray would leave its agents running for a minute."""
    driver = psutil.Process()
    before = set(driver.children())

    def started() -> list[psutil.Process]:
        return [process for own in set(driver.children()) - before for process in (own, *own.children(recursive=True))]

    with at_a_late_end(lambda: _kill(started())):
        try:
            yield
        except BaseException as error:
            processes = started()
            _leave(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
            _kill(processes)
            raise


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _raylets() -> list[psutil.Process]:
    """Ray's services on this machine that this process started."""
    return [process for process in psutil.Process().children() if process.name() == "raylet"]


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in the block have SIGTERM and SIGHUP, which reach a whole group, blocked; this process ends them in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _sessions() -> Iterator[Path]:
    """A folder for Ray's sockets and logs, gone after the block; those of drivers that were killed are removed, too."""
    above = Path(tempfile.gettempdir())
    if len(os.fsencode(above)) > _LONGEST:  # a socket's path has an end
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
            if not _raylets():  # Ray may not have ended in time
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_cluster(address: str, files: Collection[Path] = ()) -> Iterator[list[Node]]:
    """The running cluster at ``address`` (``host:port``, or ``auto`` for one on this machine) for the block; yields its nodes.

    Args:
        address: where its head listens.
        files: what its machines need to import; those below the working folder are sent to each.

    Raises:
        UserError: there is no cluster, or this process may not join it.
    """
    if address != "auto":
        _check_listening(address)
    with tempfile.TemporaryDirectory(prefix="fedsim-plug-ins-") as staged:
        sent = _copied(files, Path(staged))
        try:
            _connect(address, **({"runtime_env": {"working_dir": staged}} if sent else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: other versions there
            what, right = "no Ray cluster runs there, or it does not let this process in", "start one with `ray start --head`"
            token = "where it asks for a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (`ray get-auth-token` at its head)"
            raise UserError(f"--address {address}", what, f"{right}, of this version of Ray and Python; {token}") from error
    with _connected():
        yield list(live_nodes())


def _copied(files: Collection[Path], folder: Path) -> bool:
    """Copy the files that lie below the working folder, at their places in it; whether there are any."""
    places = {file: file.relative_to(Path.cwd()) for file in files if file.is_relative_to(Path.cwd())}
    for file, place in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / place)
    return bool(places)


def live_nodes() -> tuple[Node, ...]:
    """The nodes that the connected cluster has now."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(Node(float(offer.get("CPU", 0)), float(offer.get("GPU", 0))) for offer in offers)


class Lifeline:
    """The services that this process's connection needs: the cluster's head and Ray's service on this machine.

    Without one of them Ray waits for a minute and then ends the process without a message.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self.node = context.get_node_id()
        own = next(node for node in ray.nodes() if node["NodeID"] == self.node)  # type: ignore[no-untyped-call]
        head, _, port = context.gcs_address.rpartition(":")
        self.services = {
            "the cluster's head": (head.strip("[]"), int(port)),
            "Ray's service on this machine": (own["NodeManagerAddress"], int(own["NodeManagerPort"])),
        }

    def check(self) -> None:
        """Check that both still listen, and that the cluster still lists this machine.

        Raises:
            ClusterLost: one does not.
        """
        for name, address in self.services.items():
            try:
                socket.create_connection(address, timeout=5).close()
            except OSError as error:
                raise ClusterLost(f"{name} does not answer any more ({error})") from error
        if not any(node["Alive"] and node["NodeID"] == self.node for node in ray.nodes()):  # type: ignore[no-untyped-call]
            raise ClusterLost("Ray's service on this machine has left the cluster")


def _check_listening(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not port.isascii() or "/" in host:
        raise UserError(f"--address {address}", "is not host:port", "give the address that `ray start --head` shows, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"--address {address}", f"cannot be reached ({error})", "give a running cluster's host:port") from error


def _connect(address: str, **options: Any) -> None:
    before = os.environ.get("PYTHONBREAKPOINT")
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    # Ray's own debugger would fail in what is run without Ray afterwards, or in another process
    os.environ.pop("PYTHONBREAKPOINT", None)
    if before is not None:
        os.environ["PYTHONBREAKPOINT"] = before


@contextmanager
def _connected() -> Iterator[None]:
    """Disconnects at the end of the block, which SIGTERM and a lost terminal end as Ctrl-C does (Ray took SIGTERM for itself)."""
    with interrupts():
        try:
            yield
        except (KeyboardInterrupt, ClusterLost) as error:
            _forget(error)
            _leave(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
            raise
        except BaseException as error:
            _forget(error)
            ray.shutdown()
            raise
        _forget()
        ray.shutdown()


def _forget(error: BaseException | None = None) -> None:
    """Drop all references to Ray's objects: one that is freed while Ray shuts down ends the process at once, with a line of Ray's own."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _leave(code: int) -> None:
    """Disconnect from a cluster that may be gone; if it does not answer in time, the process later exits without Ray's shutdown.

    Args:
        code: the exit code then.
    """
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVING)
    if leaving.is_alive():  # to kill what it waits for would be the end of this process, too
        atexit.unregister(ray.shutdown)
        atexit.register(_end, code)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
