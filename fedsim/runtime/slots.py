"""Slots: the actors that work on one cell, reserved together and kept for the next cell of the same shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.grid.models import Resources
from fedsim.runtime.worker import CohortActor, TrialWorker


@dataclass(frozen=True, eq=False)
class Slot:
    """The actors of one cell.

    Attributes:
        actors: how many actors compute.
        worker: the trial worker, which hosts the first cohort.
        cohorts: the actors of the other cohorts.
        group: their placement group.
    """

    actors: int
    worker: Any
    cohorts: list[Any]
    group: PlacementGroup

    @classmethod
    def open(cls, actors: int, resources: Resources) -> Slot:
        """Reserve the shares of all actors at once, so that cells never wait for each other's, and start the actors."""
        share = {"CPU": resources.cpus_per_actor}
        if resources.gpus_per_actor:
            share["GPU"] = resources.gpus_per_actor
        group = placement_group([share] * actors, strategy="PACK")

        def placed(kind: type, bundle: int) -> Any:
            return ray.remote(kind).options(
                num_cpus=resources.cpus_per_actor,
                num_gpus=resources.gpus_per_actor,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            )

        cpus = resources.cpus_per_actor
        cohorts = [placed(CohortActor, bundle).remote(cpus) for bundle in range(1, actors)]
        return cls(actors, placed(TrialWorker, 0).remote(cpus, cohorts), cohorts, group)

    def close(self) -> None:
        """End the actors and give their shares back."""
        for actor in (self.worker, *self.cohorts):
            ray.kill(actor)
        remove_placement_group(self.group)


@dataclass
class Slots:
    """All slots of a bench, opened when they are needed.

    Attributes:
        resources: an actor's shares.
        capacity: how many actors fit on the cluster.
        parallel: how many slots may work at a time.
    """

    resources: Resources
    capacity: int
    parallel: int
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)

    def take(self, actors: int, *, any_shape: bool = False) -> Slot | None:
        """A slot of ``actors`` actors, or an idle one of ``any_shape``; None if another must be given back first.

        While no slot is busy, there is always one for a cell that fits at all.
        """
        if len(self.busy) >= self.parallel:
            return None
        slot = next((slot for slot in self.idle if any_shape or slot.actors == actors), None)
        if slot is not None:
            self.idle.remove(slot)
        else:
            slot = self._open(actors)
        if slot is not None:
            self.busy.append(slot)
        return slot

    def _open(self, actors: int) -> Slot | None:
        """A new slot, if it fits beside the busy ones; idle ones make room."""
        free = self.capacity - sum(slot.actors for slot in self.busy)
        if actors > free:
            return None
        while sum(slot.actors for slot in self.idle) + actors > free:
            self.idle.pop(0).close()
        return Slot.open(actors, self.resources)

    def give_back(self, slot: Slot) -> None:
        """The slot's work is done."""
        self.busy.remove(slot)
        self.idle.append(slot)

    def drop(self, slot: Slot) -> None:
        """The slot lost an actor: end what is left of it."""
        self.busy.remove(slot)
        slot.close()

    def close(self) -> None:
        """End all slots."""
        for slot in (*self.idle, *self.busy):
            slot.close()
        self.idle, self.busy = [], []
