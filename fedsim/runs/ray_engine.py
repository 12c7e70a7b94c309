"""Ray as the engine: slots in placement groups, jobs as streaming calls of actors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.planning.node import Node, Share
from fedsim.runs.actors import CohortActor, TrialWorker, send_tensors_as_bytes
from fedsim.runs.cluster import Lifeline, live_nodes, local_cluster
from fedsim.runs.engine import Slot, WorkerLost
from fedsim.runs.worker import Failure, Item


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
