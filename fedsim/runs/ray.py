"""Ray, all of it: a cluster of this machine or one that is joined, its actors, and the engine that
runs jobs on them.
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

# Ray reads these as it is imported and hands them to what it starts: no usage report to anyone, no
# warning about idle GPUs, a model of up
# to 1 MiB travels in the call itself, in a third of the object store's time, worker processes
# import torch while Ray still starts, a
# signal is heard within 0.1 s of any wait, workers stay in their cluster's process group, a cluster
# that is started here listens on
# 127.0.0.1 alone, and within `ray job submit --working-dir` what a plug-in needs travels, too, in
# place of the job's folder.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_max_direct_call_object_size": str(2**20),
        "RAY_preload_python_modules": "fedsim.runs.ray",
        "RAY_get_check_signal_interval_milliseconds": "100",
        "RAY_process_group_cleanup_enabled": "false",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    }
    | dict(os.environ)
)
# `ray start` protects a cluster by the token of its machine if there is one; a driver that joins by
# address must set the mode itself.
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
from fedsim.grid.models import Device
from fedsim.interrupts import INTERRUPTED, interrupts
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.runs.prepare import Need, Node
from fedsim.runs.worker import ClusterLost, Failure, Item, Process, Slot, Worker, WorkerLost
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.trial import Trial

IN_THE_CALL = int(os.environ["RAY_max_direct_call_object_size"])  # noqa: SIM112 (Ray's spelling)
"""Bytes that Ray sends within a call; more goes through the object store."""
LEAVING = 2.0
"""Seconds in which a connection may end by itself after an interruption or a loss."""
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
"""A process that leads a session: it starts a cluster, says its address, and kills the whole
session's group once its input ends.
"""


@contextmanager
def local_ray(node: Node) -> Iterator[RayEngine]:
    """A Ray cluster of this machine alone for the block, as an engine."""
    with local_cluster(node):
        yield RayEngine()


@contextmanager
def local_cluster(node: Node) -> Iterator[None]:
    """A Ray cluster of one node for the block, for this machine alone; its processes end with this
    one, however it ends.
    """
    if ray.is_initialized():
        raise UserError(
            "Ray",
            "runs in this process already",
            "end it with `ray.shutdown()` first, which ends what it computes, too",
        )
    # a socket's path may have 107 bytes, of which a long TMPDIR would leave Ray too few
    scratch = tempfile.TemporaryDirectory(
        prefix="fedsim-ray-", dir="/tmp", ignore_cleanup_errors=True
    )
    with scratch as folder, _head(node, Path(folder)) as address, _connected():
        try:
            _connect(address)
        except Exception as error:  # Ray raises plain ones
            raise _not_started(" ".join(str(error).split()) or type(error).__name__) from error
        with interrupts():  # Ray took SIGTERM for itself
            yield


def _not_started(what: str) -> RunLost:
    return RunLost(
        "Ray", f"did not start ({what})", "free memory or processes; the same command tries again"
    )


@contextmanager
def _head(node: Node, folder: Path) -> Iterator[str]:
    """A cluster in a session of its own, which no terminal's signal reaches; yields its address. It
    ends with the block or the driver.
    """
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
    }
    command = [sys.executable, "-c", _HEAD, str(int(node.cpus)), str(int(node.gpus))]
    pipe = subprocess.PIPE
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            env=environment,
            text=True,
            start_new_session=True,
        ) as head,
    ):
        try:
            assert head.stdout is not None
            if not (address := head.stdout.readline().strip()):
                raise _not_started(
                    [*Path(errors.name).read_text().strip().splitlines(), "no word of why"][-1]
                )
            yield address
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


@contextmanager
def joined_cluster(address: str, files: Collection[Path] = ()) -> Iterator[list[Node]]:
    """The running cluster at ``address`` (``host:port``, or ``auto`` for one on this machine) for
    the block; yields its nodes.

    Of ``files``, which its machines need to import, those below the working folder are sent to
    each.
    """
    host, _, port = address.rpartition(":")
    try:  # Ray itself would try for minutes
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"address {address}",
            f"cannot be reached ({error})",
            "give a running cluster's host:port, or auto",
        ) from error
    with tempfile.TemporaryDirectory(prefix="fedsim-plug-ins-") as staged:
        sent = [file.relative_to(Path.cwd()) for file in files if file.is_relative_to(Path.cwd())]
        for place in sent:
            (Path(staged) / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place, Path(staged) / place)
        try:
            _connect(address, **({"runtime_env": {"working_dir": staged}} if sent else {}))
        except (
            ConnectionError,
            RuntimeError,
            ValueError,
        ) as error:  # RuntimeError: other versions there
            what = "no Ray cluster runs there, or it does not let this process in"
            right = "start one with `ray start --head`"
            token = (
                "where it asks for a token, set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (`ray "
                "get-auth-token` at its head)"
            )
            raise UserError(
                f"address {address}", what, f"{right}, of this version of Ray and Python; {token}"
            ) from error
    with _connected(), interrupts():
        yield list(live_nodes())


def _connect(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    os.environ.pop(
        "PYTHONBREAKPOINT", None
    )  # Ray's own debugger would fail in what is run without Ray afterwards


@contextmanager
def _connected() -> Iterator[None]:
    """Disconnects at the end of the block; from a cluster that may be gone without waiting for
    it.
    """
    late: int | None = None
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            late = INTERRUPTED
        elif isinstance(error, ClusterLost):
            late = 1
        else:
            late = None
        raise
    finally:
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(None if late is None else LEAVING)
        if (
            late is not None and leaving.is_alive()
        ):  # at the end of the process nothing waits for it any more
            atexit.unregister(ray.shutdown)
            atexit.register(os._exit, late)


def live_nodes() -> tuple[Node, ...]:
    """The nodes that the connected cluster has now."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(Node(float(offer.get("CPU", 0)), float(offer.get("GPU", 0))) for offer in offers)


def prepare_process() -> None:
    """Let Ray send tensors as arrays of bytes, into memory of torch's own: Ray's is read-only and
    aligned by chance.
    """
    ray.util.register_serializer(torch.Tensor, serializer=_sent, deserializer=_received)


def _sent(tensor: torch.Tensor) -> tuple[NDArray[np.uint8], torch.dtype, torch.Size]:
    return bytes_of(tensor), tensor.dtype, tensor.shape


def _received(sent: tuple[NDArray[np.uint8], torch.dtype, torch.Size]) -> torch.Tensor:
    content, dtype, shape = sent
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = content
    return tensor


class TrialWorker(Worker):
    """A worker whose further cohorts are on ``cohorts``, the other actors of its slot."""

    def __init__(self, need: Need, device: Device, cohorts: Sequence[Any] = ()) -> None:
        super().__init__(need, device)
        os.environ["PYTHONBREAKPOINT"] = (
            "0"  # Ray would wait for a debugger, and nothing would say so
        )
        prepare_process()
        self.cohorts = list(cohorts)

    def pool(self, trial: Trial, data: Embeddings, held: Sequence[Any], seeds: Seeds) -> LocalPool:
        """The clients of a cell, on all actors of the slot."""
        if len(trial.sizes) == 1:
            return super().pool(trial, data, held, seeds)
        return RayPool(
            self.cohorts, trial.cohorts(seeds), trial.data_key, data, held[0], self.device
        )

    def failure(self, error: Exception | SystemExit) -> Failure | None:
        """Why a cell failed; an exception of another actor comes wrapped, with the traceback over
        there as its text. None: it died.
        """
        if isinstance(error, ray.exceptions.RayTaskError):
            return Failure(type(error.cause).__name__, str(error.cause), str(error))
        if isinstance(error, ray.exceptions.RayActorError):
            return None
        return super().failure(error)


class CohortActor(Process):
    """Hosts one cohort of a cell that is spread over several actors."""

    def __init__(self, need: Need, device: Device) -> None:
        super().__init__(need, device)
        os.environ["PYTHONBREAKPOINT"] = "0"
        prepare_process()
        self.cohort: Cohort | None = None

    def host(self, spec: CohortSpec, key: str, data: Embeddings) -> None:
        """Take the clients of ``spec``, of the data set with this key, up, in place of any earlier
        ones.
        """
        self.cohort = None
        self.make_ready()
        data = self.same(key, data)
        self.cohort = Cohort(spec.given(data.public), data.x_train, data.y_train, self.device)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the cohort; what it returns travels by the CPU, in one copy."""
        returned = getattr(self.cohort, method)(*args)
        if isinstance(returned, Message):
            return returned.on(CPU)
        return returned


class RayPool(LocalPool):
    """The cohorts of a cell, the first in this process and each other on one of ``actors``."""

    def __init__(
        self,
        actors: Sequence[Any],
        specs: Sequence[CohortSpec],
        key: str,
        data: Embeddings,
        data_ref: Any,
        device: torch.device,
    ) -> None:
        self.actors = list(actors)
        self.sizes = [len(spec.members) for spec in specs]
        hosted = [
            actor.host.remote(spec.given(None), key, data_ref)
            for actor, spec in zip(self.actors, specs[1:], strict=True)
        ]
        self.cohorts = [Cohort(specs[0], data.x_train, data.y_train, device)]
        ray.get(hosted)

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """As in this process, but all at once."""
        own, *others = arguments
        running = [
            actor.call.remote(method, *its) for actor, its in zip(self.actors, others, strict=True)
        ]
        return [getattr(self.cohorts[0], method)(*own), *ray.get(running)]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """As in this process; a large broadcast goes into the object store once."""
        size = sum(value.nbytes for value in broadcast.values())
        there = moved(broadcast, CPU)
        if size > IN_THE_CALL:
            sent: Any = ray.put(there)
        else:
            sent = there
        return self.each("round", [(round_, broadcast), *[(round_, sent)] * len(self.actors)])


class RayEngine:
    """The connected Ray cluster; its methods are those of :class:`fedsim.runs.worker.InProcess`.

    Without its head, or Ray's service on this machine, Ray waits for a minute and then ends the
    process without a message.
    """

    def __init__(self) -> None:
        prepare_process()
        context = ray.get_runtime_context()
        self.node = context.get_node_id()
        own = next(node for node in ray.nodes() if node["NodeID"] == self.node)  # type: ignore[no-untyped-call]
        head, _, port = context.gcs_address.rpartition(":")
        self.services = {
            "the cluster's head": (head.strip("[]"), int(port)),
            "Ray's service on this machine": (
                own["NodeManagerAddress"],
                int(own["NodeManagerPort"]),
            ),
        }

    def put(self, value: Any) -> Any:
        """A reference into the object store."""
        return ray.put(value)

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that the cluster has now; what this process is connected by must still listen
        and be listed.
        """
        for name, address in self.services.items():
            try:
                socket.create_connection(address, timeout=5).close()
            except OSError as error:
                raise ClusterLost(f"{name} does not answer any more ({error})") from error
        if not any(node["Alive"] and node["NodeID"] == self.node for node in ray.nodes()):  # type: ignore[no-untyped-call]
            raise ClusterLost("Ray's service on this machine has left the cluster")
        return live_nodes()

    def open(self, need: Need, device: Device) -> Slot:
        """The actors, in a placement group for all of them at once, so that cells never wait for
        each other's.
        """
        bundle = {"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {})
        group: PlacementGroup = placement_group([bundle] * need.actors, strategy="PACK")

        def placed(kind: type, bundle: int) -> Any:
            return ray.remote(kind).options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=bundle
                ),
            )

        cohorts = [
            placed(CohortActor, bundle).remote(need, device) for bundle in range(1, need.actors)
        ]
        return Slot(
            need, placed(TrialWorker, 0).remote(need, device, cohorts), tuple(cohorts), group
        )

    def close(self, slot: Slot) -> None:
        """End the actors and give their shares back."""
        for actor in (slot.worker, *slot.others):
            ray.kill(actor)
        remove_placement_group(slot.group)

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """A streaming call."""
        return getattr(slot.worker, method).options(num_returns="streaming").remote(*args)

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """The first stream with an item."""
        ready: list[Any] = ray.wait(list(streams), timeout=timeout)[0]
        return ready

    def receive(self, stream: Any) -> Item:
        """The next item."""
        try:
            item: Item = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            self.nodes()
            raise _lost(error) from error
        return item


def _lost(error: ray.exceptions.RayError) -> WorkerLost:
    """A process, a machine or an object was lost, which is no fault of the job; or an exception was
    raised.
    """
    cause = getattr(error, "cause", None) or error
    if isinstance(
        cause if isinstance(error, ray.exceptions.RayTaskError) else error, ray.exceptions.RayError
    ):
        what = "a worker process of the cell died (killed, out of memory, or it crashed)"
        return WorkerLost(Failure(type(cause).__name__, what, str(cause), goes_on=True), again=True)
    return WorkerLost(Failure(type(cause).__name__, str(cause), str(error)), again=False)
