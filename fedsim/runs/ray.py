"""Starts or joins Ray clusters and runs jobs on their actors; no other module imports Ray.

A cluster is either started for this machine (:func:`local_cluster`) or joined by its address
(:func:`joined_cluster`). :class:`RayEngine` then opens slots on it. A slot is a group of actors
that runs one job at a time. Its first actor is a :class:`TrialWorker`, which runs the job. Each
other actor is a :class:`CohortActor`, which hosts further clients of the worker's cell.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Ray reads these variables when it is imported, and hands them to the processes that it starts.
# A variable that the user has set keeps its value.
os.environ.update(
    {
        # Ray sends no usage report to anyone.
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray gives no warning about idle GPUs.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A model of up to 1 MiB travels in the call itself, in a third of the time that the object
        # store takes.
        "RAY_max_direct_call_object_size": str(2**20),
        # Worker processes import torch while Ray still starts.
        "RAY_preload_python_modules": "fedsim.runs.ray",
        # A process that waits for Ray reacts to a signal within 0.1 s.
        "RAY_get_check_signal_interval_milliseconds": "100",
        # Workers stay in the process group of their cluster, so that they end with it.
        "RAY_process_group_cleanup_enabled": "false",
        # A cluster that is started here only listens on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Within `ray job submit --working-dir`, the files of a plug-in replace the job's folder.
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    }
    | dict(os.environ)
)
# `ray start` protects a cluster by the token of its machine if there is one. A driver that joins
# the cluster by its address must set the mode itself.
if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or (
    Path.home() / ".ray" / "auth_token"
).exists():
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, bytes_of, moved
from fedsim.errors import RunLost, UserError
from fedsim.grid.models import Cell, Device
from fedsim.interrupts import INTERRUPTED, interrupts
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.runs.engine import ClusterLost, Engine, Slot, WorkerLost
from fedsim.runs.items import Failure, Item
from fedsim.runs.prepare import Need, Node
from fedsim.runs.process import Process
from fedsim.runs.worker import Worker, check_source
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.trial import Trial

IN_THE_CALL = int(os.environ["RAY_max_direct_call_object_size"])  # noqa: SIM112 (Ray's spelling)
"""The most bytes that Ray sends within a call; more goes through the object store."""
LEAVING = 2.0
"""The seconds that a connection has to end after an interruption or the loss of the cluster."""
_HEAD = """
import os, signal, sys
import ray
ray.init(
    "local",
    num_cpus=int(sys.argv[1]),
    num_gpus=int(sys.argv[2]),
    include_dashboard=False,
    log_to_driver=False,
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""
"""The program of a process that starts a cluster, in a session of its own.

It prints the cluster's address. Once its input ends, it kills all processes of the session.
"""


@contextmanager
def local_cluster(node: Node) -> Iterator[RayEngine]:
    """Start a Ray cluster of one node for the block, and connect this process to it.

    Only this machine can reach it. Its processes end with this one, however this one ends.

    Args:
        node: the CPUs and GPUs that the cluster offers.

    Yields:
        The engine that runs jobs on the cluster.

    Raises:
        UserError: Ray is running in this process already.
        RunLost: the cluster did not start.
    """
    _check_not_connected()
    # A socket's path has at most 107 bytes, and a long TMPDIR would leave too few of them to Ray.
    scratch = tempfile.TemporaryDirectory(
        prefix="fedsim-ray-",
        dir="/tmp",
        ignore_cleanup_errors=True,
    )
    with scratch as folder, _head(node, Path(folder)) as address, _connected():
        try:
            _connect(address)
        except Exception as error:  # Ray raises exceptions of no particular type.
            raise _not_started(" ".join(str(error).split()) or type(error).__name__) from error
        with interrupts():  # Ray has replaced the handler of SIGTERM.
            yield RayEngine()


def _check_not_connected() -> None:
    """Check that this process is connected to no cluster; it can be connected only to one.

    Raises:
        UserError: it is connected to one.
    """
    if ray.is_initialized():
        raise UserError(
            "Ray",
            "runs in this process already",
            "call `ray.shutdown()` first, which also ends what Ray computes now",
        )


def _not_started(reason: str) -> RunLost:
    """Return the error for a cluster that did not start."""
    return RunLost(
        "Ray",
        f"did not start ({reason})",
        "free some memory or end other processes; the same command tries again",
    )


@contextmanager
def _head(node: Node, folder: Path) -> Iterator[str]:
    """Start the head of a cluster for the block, and yield its address.

    The head has its own session, which no signal of a terminal reaches. It also ends if the
    driver dies.

    Args:
        node: the CPUs and GPUs that the cluster offers.
        folder: a folder for Ray's temporary files.
    """
    environment = dict(os.environ)
    environment["RAY_TMPDIR"] = str(folder)
    environment.setdefault("RAY_AUTH_MODE", "disabled")
    command = [sys.executable, "-c", _HEAD, str(int(node.cpus)), str(int(node.gpus))]
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            start_new_session=True,
        ) as head,
    ):
        try:
            assert head.stdout is not None
            address = head.stdout.readline().strip()
            if not address:
                error_lines = Path(errors.name).read_text().strip().splitlines()
                reason = "it printed no reason"
                if error_lines:
                    reason = error_lines[-1]
                raise _not_started(reason)
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


@contextmanager
def joined_cluster(address: str, files: Collection[Path] = ()) -> Iterator[list[Node]]:
    """Connect this process to a running cluster for the block, and yield the cluster's nodes.

    Args:
        address: ``host:port``, or ``auto`` for a cluster on this machine.
        files: the files that the cluster's machines need to import. Files below the working
            folder are sent to each machine.

    Raises:
        UserError: Ray is running in this process already, no cluster can be reached at the
            address, or it does not accept this process.
    """
    _check_not_connected()
    if address != "auto":
        _check_reachable(address)
    with tempfile.TemporaryDirectory(prefix="fedsim-plug-ins-") as staged:
        options: dict[str, Any] = {}
        if _copy_files(files, Path(staged)):
            options["runtime_env"] = {"working_dir": staged}
        try:
            _connect(address, **options)
        # Other versions of Ray or Python on the cluster give a RuntimeError.
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _not_joined(address) from error
    with _connected(), interrupts():
        yield list(live_nodes())


def _check_reachable(address: str) -> None:
    """Check that something listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"address {address}",
            f"cannot be reached ({error})",
            "give a running cluster's host:port, or auto",
        ) from error


def _copy_files(files: Collection[Path], target: Path) -> bool:
    """Copy the files that are below the working folder; return whether there are any."""
    here = Path.cwd()
    paths = [file.relative_to(here) for file in files if file.is_relative_to(here)]
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path)
    return bool(paths)


def _not_joined(address: str) -> UserError:
    """Return the error for a cluster that does not accept this process."""
    return UserError(
        f"address {address}",
        "no Ray cluster runs there, or it does not let this process in",
        "start one by `ray start --head` with the versions of Ray and Python that run here; if it "
        "asks for a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the "
        "head's machine prints the token)",
    )


def _connect(address: str, **options: Any) -> None:
    """Connect this process to a cluster."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    # Ray sets its own debugger, which would fail in code that runs without Ray afterwards.
    os.environ.pop("PYTHONBREAKPOINT", None)


@contextmanager
def _connected() -> Iterator[None]:
    """Disconnect at the end of the block.

    After an interruption or the loss of the cluster, the connection gets :data:`LEAVING` seconds
    to end, because the cluster may not answer any more. If the connection is still open then,
    this process also exits without waiting for it.
    """
    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
    try:
        yield
    except (KeyboardInterrupt, ClusterLost) as error:
        shutdown.start()
        shutdown.join(LEAVING)
        if shutdown.is_alive():
            atexit.unregister(ray.shutdown)
            atexit.register(os._exit, getattr(error, "exit_code", INTERRUPTED))
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def live_nodes() -> tuple[Node, ...]:
    """Return the nodes that the connected cluster has now."""
    nodes = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            resources = node["Resources"]
            nodes.append(Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0))))
    return tuple(nodes)


def prepare_process() -> None:
    """Let Ray send tensors as arrays of bytes, and copy each received tensor to memory of torch.

    Without this, a received tensor is in memory of Ray, which is read-only and aligned by chance.
    """
    ray.util.register_serializer(torch.Tensor, serializer=_packed, deserializer=_unpacked)


def _packed(tensor: torch.Tensor) -> tuple[NDArray[np.uint8], torch.dtype, torch.Size]:
    return bytes_of(tensor), tensor.dtype, tensor.shape


def _unpacked(packed: tuple[NDArray[np.uint8], torch.dtype, torch.Size]) -> torch.Tensor:
    content, dtype, shape = packed
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = content
    return tensor


def _prepare_actor() -> None:
    """Make the process of an actor ready to compute."""
    # At a breakpoint Ray would wait for a debugger, and nothing would say so.
    os.environ["PYTHONBREAKPOINT"] = "0"
    prepare_process()


class TrialWorker(Worker):
    """A worker on a Ray actor; further clients of its cell are on other actors.

    Args:
        need: the CPUs and GPUs of the actor.
        device: the device that the grid asks for.
        cohorts: the other actors of the slot (:class:`CohortActor`).
    """

    def __init__(self, need: Need, device: Device, cohorts: Sequence[Any] = ()) -> None:
        super().__init__(need, device)
        _prepare_actor()
        self.cohorts = cohorts

    def pool(
        self, engine_data: Sequence[Any], trial: Trial, data: Embeddings, seeds: Seeds
    ) -> LocalPool:
        """Return the clients of a cell, on all actors of the slot."""
        if len(trial.sizes) == 1:
            return super().pool(engine_data, trial, data, seeds)
        return RayPool(self.cohorts, trial, seeds, data, engine_data[0], self.device)

    def failure(self, error: Exception | SystemExit) -> Failure | None:
        """Return why a job failed; None if a process, a machine or an object was lost.

        Ray wraps an exception of another actor. The text of the wrapper is the traceback of the
        exception on that actor.
        """
        if _is_loss(error):
            return None
        if isinstance(error, ray.exceptions.RayTaskError):
            return Failure(type(error.cause).__name__, str(error.cause), str(error))
        return super().failure(error)


class CohortActor(Process):
    """A Ray actor with some clients of a cell that is spread over several actors.

    Args:
        need: the CPUs and GPUs of the actor.
        device: the device that the grid asks for.
    """

    def __init__(self, need: Need, device: Device) -> None:
        super().__init__(need, device)
        _prepare_actor()
        self.cohort: Cohort | None = None

    def host(self, cell: Cell, spec: CohortSpec, key: str, data: Embeddings) -> None:
        """Replace the clients of this actor.

        Args:
            cell: the cell of the new clients.
            spec: the new clients.
            key: the key of their data set.
            data: their data set.
        """
        self.cohort = None
        self.make_ready()
        check_source(cell)
        data = self.reuse(key, data)
        self.cohort = Cohort(spec.given(data.public), data.x_train, data.y_train, self.device)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the cohort and return its result; a message is moved to the CPU."""
        result = getattr(self.cohort, method)(*args)
        if isinstance(result, Message):
            return result.on(CPU)
        return result


class RayPool(LocalPool):
    """The clients of a cell, spread over this process and other actors.

    Args:
        actors: the other actors.
        trial: the cell. Its first clients are in this process, the others on the actors.
        seeds: the seed tree of the training.
        data: the data set.
        data_ref: Ray's reference to the data set, for the other actors.
        device: the device of this process.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        trial: Trial,
        seeds: Seeds,
        data: Embeddings,
        data_ref: Any,
        device: torch.device,
    ) -> None:
        self.actors = actors
        specs = trial.cohorts(seeds)
        self.sizes = [len(spec.members) for spec in specs]
        calls = []
        for actor, spec in zip(self.actors, specs[1:], strict=True):
            sent = spec.given(None)
            calls.append(actor.host.remote(trial.cell, sent, trial.data_key, data_ref))
        self.cohorts = [Cohort(specs[0], data.x_train, data.y_train, device)]
        ray.get(calls)

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every cohort, all at the same time, and return the results in order."""
        first_arguments, *other_arguments = arguments
        calls = []
        for actor, args in zip(self.actors, other_arguments, strict=True):
            calls.append(actor.call.remote(method, *args))
        first_result = getattr(self.cohorts[0], method)(*first_arguments)
        return [first_result, *ray.get(calls)]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Run one round of all clients; a large broadcast goes into the object store once."""
        size = sum(value.nbytes for value in broadcast.values())
        sent: Any = moved(broadcast, CPU)
        if size > IN_THE_CALL:
            sent = ray.put(sent)
        arguments = [(round_, broadcast)] + [(round_, sent)] * len(self.actors)
        return self.each("round", arguments)


class RayEngine(Engine):
    """The engine of the Ray cluster that this process is connected to.

    If the cluster's head or Ray's service on this machine is gone, Ray waits for a minute and then
    ends the process without a message. So the engine checks both by itself.
    """

    def __init__(self) -> None:
        prepare_process()
        context = ray.get_runtime_context()
        self.node = context.get_node_id()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        this_node = next(node for node in nodes if node["NodeID"] == self.node)
        head, _, port = context.gcs_address.rpartition(":")
        service = (this_node["NodeManagerAddress"], int(this_node["NodeManagerPort"]))
        self.services = {
            "the cluster's head": (head.strip("[]"), int(port)),
            "Ray's service on this machine": service,
        }

    def put(self, value: Any) -> Any:
        """Put a value into the object store and return its reference."""
        return ray.put(value)

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that the cluster has now.

        Raises:
            ClusterLost: the head or the service on this machine does not answer any more, or this
                machine has left the cluster.
        """
        for name, address in self.services.items():
            try:
                socket.create_connection(address, timeout=5).close()
            except OSError as error:
                raise ClusterLost(f"{name} does not answer any more ({error})") from error
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        if not any(node["Alive"] and node["NodeID"] == self.node for node in nodes):
            raise ClusterLost("Ray's service on this machine has left the cluster")
        return live_nodes()

    def open(self, need: Need, device: Device) -> Slot:
        """Start the actors of a slot.

        They are in one placement group, which gets room for all of them at once, so that two
        cells never wait for each other's actors.
        """
        share = {"CPU": need.cpus}
        if need.gpus:
            share["GPU"] = need.gpus
        group: PlacementGroup = placement_group([share] * need.actors, strategy="PACK")

        def actor_class(kind: type, index: int) -> Any:
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            return ray.remote(kind).options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                scheduling_strategy=strategy,
            )

        cohorts = []
        for index in range(1, need.actors):
            cohorts.append(actor_class(CohortActor, index).remote(need, device))
        worker = actor_class(TrialWorker, 0).remote(need, device, cohorts)
        return Slot(need, worker, tuple(cohorts), group)

    def close(self, slot: Slot) -> None:
        """End the actors of a slot and free their shares."""
        for actor in (slot.worker, *slot.others):
            ray.kill(actor)
        remove_placement_group(slot.group)

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """Start a job and return its stream; the job waits until its actors have started."""
        return getattr(slot.worker, method).options(num_returns="streaming").remote(*args)

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """Return a list with the first stream that has an item or has ended.

        The list is empty if there is no such stream within ``timeout`` seconds.
        """
        ready: list[Any] = ray.wait(list(streams), timeout=timeout)[0]
        return ready

    def receive(self, stream: Any) -> Item:
        """Return the next item of a stream."""
        try:
            return ray.get(next(stream))
        except ray.exceptions.RayError as error:
            self.nodes()
            raise _worker_lost(error) from error


def _is_loss(error: BaseException) -> bool:
    """Return whether a process, a machine or an object was lost, which is no fault of the job."""
    while isinstance(error, ray.exceptions.RayTaskError):
        error = error.cause
    # In place of an exception that cannot be pickled, a plain RayError arrives.
    return isinstance(error, ray.exceptions.RayError) and type(error) is not ray.exceptions.RayError


def _worker_lost(error: ray.exceptions.RayError) -> WorkerLost:
    """Translate an error of Ray into the loss of a worker.

    If a process, a machine or an object was lost, the job runs again. Otherwise the job raised an
    exception that it could not report as a failure, and it does not run again.
    """
    cause = getattr(error, "cause", None) or error
    kind = type(cause).__name__
    if _is_loss(error):
        what = "a worker process died (it was killed, ran out of memory, crashed or did not start)"
        return WorkerLost(Failure(kind, what, str(cause), goes_on=True), again=True)
    return WorkerLost(Failure(kind, str(cause), str(error)), again=False)
