"""Ray as the engine: slots in placement groups, jobs as streaming calls of actors; and rehearsals on all its machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from fedsim.errors import PluginError, UserError
from fedsim.grid.resolve import Variant
from fedsim.methods.messages import Task
from fedsim.planning.node import Node, Share
from fedsim.planning.rehearsal import rehearse
from fedsim.plugins.places import said
from fedsim.runs.actors import CohortActor, TrialWorker, send_tensors_as_bytes
from fedsim.runs.cluster import Lifeline, live_nodes, local_cluster
from fedsim.runs.engine import Slot, WorkerLost
from fedsim.runs.worker import Failure, Item

STARTING = 60.0
"""Seconds that a machine may take to begin: a process that imports torch."""


@dataclass(frozen=True)
class _Held:
    """A slot's cohort actors and its placement group."""

    cohorts: list[Any]
    group: PlacementGroup


class RayEngine:
    """The connected Ray cluster; see :class:`fedsim.runs.engine.Engine`."""

    def __init__(self) -> None:
        send_tensors_as_bytes()
        self.lifeline = Lifeline()

    def put(self, value: Any) -> Any:
        """A reference into the object store."""
        return ray.put(value)

    def nodes(self) -> tuple[Node, ...]:
        """The nodes that the cluster has now.

        Raises:
            ClusterLost: its head or this machine's service does not answer.
        """
        self.lifeline.check()
        return live_nodes()

    def reserve(self, actors: int, share: Share) -> PlacementGroup:
        """A placement group for all actors at once, so that cells never wait for each other's."""
        bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
        group: PlacementGroup = placement_group([bundle] * actors, strategy="PACK")
        return group

    def opened(self, reserved: PlacementGroup, actors: int, share: Share, patience: float) -> Slot | None:
        """The actors, started in what is reserved for them."""
        if not reserved.wait(patience):
            return None

        def placed(kind: type, bundle: int) -> Any:
            return ray.remote(kind).options(
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=bundle),
            )

        cohorts = [placed(CohortActor, bundle).remote(share) for bundle in range(1, actors)]
        return Slot(actors, share, placed(TrialWorker, 0).remote(share, cohorts), _Held(cohorts, reserved))

    def cancel(self, reserved: PlacementGroup) -> None:
        """Remove a placement group."""
        remove_placement_group(reserved)

    def close(self, slot: Slot) -> None:
        """End the actors and give their shares back."""
        for actor in (slot.worker, *slot.held.cohorts):
            ray.kill(actor)
        remove_placement_group(slot.held.group)

    def lost(self, slots: Sequence[Slot]) -> list[Slot]:
        """Slots whose placement group is not whole any more."""
        table = placement_group_table()
        return [slot for slot in slots if table.get(slot.held.group.id.hex(), {}).get("state") != "CREATED"]

    def start(self, slot: Slot, method: str, *args: Any) -> Any:
        """A streaming call."""
        return getattr(slot.worker, method).options(num_returns="streaming").remote(*args)

    def ready(self, streams: Sequence[Any], timeout: float) -> list[Any]:
        """The first stream with an item."""
        ready: list[Any] = ray.wait(list(streams), timeout=timeout)[0]
        return ready

    def receive(self, stream: Any) -> Item:
        """The next item.

        Raises:
            StopIteration: the job has ended.
            WorkerLost: its worker, its machine or an object is gone, or it raised an exception of Ray's.
            ClusterLost: the cluster is.
        """
        try:
            item: Item = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            self.lifeline.check()
            raise WorkerLost(_failure(error), again=_is_loss(error)) from error
        return item


def _failure(error: ray.exceptions.RayError) -> Failure:
    cause = getattr(error, "cause", None) or error
    if _is_loss(error):
        what = "a worker process of the cell died (killed, out of memory, or it crashed)"
        return Failure(type(cause).__name__, what, str(cause), goes_on=True)
    return Failure(type(cause).__name__, str(cause), str(error))


def _is_loss(error: ray.exceptions.RayError) -> bool:
    """Whether a process, a machine or an object was lost, rather than an exception raised."""
    return isinstance(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error, ray.exceptions.RayError)


@contextmanager
def local_ray(node: Node) -> Iterator[RayEngine]:
    """A Ray cluster of this machine alone for the block, as an engine."""
    with local_cluster(node):
        yield RayEngine()


@contextmanager
def connected_ray() -> Iterator[RayEngine]:
    """The cluster that this process has joined, as an engine."""
    yield RayEngine()


def everywhere(variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device, seconds: float) -> None:
    """:func:`fedsim.planning.rehearsal.rehearse` on every machine of the connected cluster: each must have what a plug-in imports.

    Raises:
        PluginError: a plug-in is refused on one of them, or ends its process there.
    """
    gpus = 0.01 if device.type == "cuda" else 0
    needs = ("CPU", "GPU") if gpus else ("CPU",)  # others run no cell
    machines = [node for node in ray.nodes() if node["Alive"] and all(map(node["Resources"].get, needs))]  # type: ignore[no-untyped-call]
    remote: Any = ray.remote(rehearse)
    for machine in machines:
        there, on = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False), f"on {machine['NodeManagerAddress']}"
        place = remote.options(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=there)
        rehearsed = place.remote(variant, task, epsilon, delta, where, device, seconds)
        try:
            ray.get(rehearsed, timeout=seconds + STARTING)
        except ray.exceptions.GetTimeoutError as error:  # in a call into a library, which ends with its process
            ray.cancel(rehearsed, force=True)
            what = f"{on}: a rehearsal on made-up data has not ended after {seconds:g} s and {STARTING:g} s for a process to start"
            raise PluginError(where, what, f"expected {variant.name} to train and sample in that time") from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UserError):
                raise PluginError(cause.where, f"{on}: {cause.what}", cause.hint) from error
            what = f"{on}: a rehearsal on made-up data failed ({said(cause)})"
            raise PluginError(where, what, f"expected {variant.name} to train and sample") from error
