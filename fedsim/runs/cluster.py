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
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import joblib
import torch

# Ray reads these as it is imported and hands them to what it starts: no usage report to anyone, no warning about idle GPUs, a model of up
# to 1 MiB travels in the call itself, in a third of the object store's time, worker processes import torch while Ray still starts, a
# signal is heard within 0.1 s of any wait, workers stay in their cluster's process group, and a cluster that is started here listens on
# 127.0.0.1 alone.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_max_direct_call_object_size", str(2**20))
os.environ.setdefault("RAY_preload_python_modules", "fedsim.runs.actors")
os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")
os.environ.setdefault("RAY_process_group_cleanup_enabled", "false")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Within `ray job submit --working-dir` what a plug-in needs travels, too, in place of the job's folder.
os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
# `ray start` protects a cluster by the token of its machine if there is one; a driver that joins by address must set the mode itself.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or (Path.home() / ".ray" / "auth_token").exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray

from fedsim.errors import RunLost, UserError
from fedsim.interrupts import INTERRUPTED, interrupts
from fedsim.planning.node import Node
from fedsim.plugins.code_hash import NOTEBOOK
from fedsim.runs.engine import ClusterLost

_SESSIONS = "fedsim-ray-"
_LONGEST = 23
"""Bytes of a temporary folder's path that leave room for Ray's below it, in the 107 that a socket's may have."""
LEAVING = 2.0
"""Seconds in which a connection may end by itself after an interruption or a loss."""
_HEAD = """
import os, signal, sys
import ray
ray.init("local", num_cpus=int(sys.argv[1]), num_gpus=int(sys.argv[2]), include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""
"""A process that leads a session: it starts a cluster, says its address, and kills the whole session's group once its input ends."""


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
    with _sessions() as folder, interrupts(), _head(node, folder) as address, _connected():
        try:
            _connect(address)
        except Exception as error:  # Ray raises plain ones
            raise _not_started(" ".join(str(error).split()) or type(error).__name__) from error
        yield


def _not_started(what: str) -> RunLost:
    return RunLost("Ray", f"did not start ({what})", "free memory or processes; the same command tries again")


@contextmanager
def _head(node: Node, folder: Path) -> Iterator[str]:
    """A cluster in a session of its own, which no terminal's signal reaches; yields its address. It ends with the block or the driver."""
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}
    command = [sys.executable, "-c", _HEAD, str(int(node.cpus)), str(int(node.gpus))]
    with (folder / "errors").open("w+") as errors:
        how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "start_new_session": True}
        head = subprocess.Popen(command, env=environment, text=True, **how)
        try:
            assert head.stdout is not None
            if not (address := head.stdout.readline().strip()):
                raise _not_started([*Path(errors.name).read_text().strip().splitlines(), "no word of why"][-1])
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.communicate()


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
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_cluster(address: str, files: Collection[Path] = ()) -> Iterator[list[Node]]:
    """The running cluster at ``address`` (``host:port``, or ``auto`` for one on this machine) for the block; yields its nodes.

    Args:
        address: where its head listens.
        files: what its machines need to import; those below the working folder, and those of notebooks, are sent to each.

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
    """Copy the files that lie below the working folder, at their places in it, and those of notebooks; whether there are any."""
    places = {file: file.relative_to(Path.cwd()) for file in files if file.is_relative_to(Path.cwd())}
    places |= {file: Path(file.name) for file in files if file.stem.startswith(NOTEBOOK)}
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
