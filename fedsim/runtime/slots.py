"""Slots: the actors that work on one cell, reserved together and kept for the next cell of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.runtime.worker import CohortActor, TrialWorker
from fedsim.simulation.node import Node, Share, fit_together


@dataclass(frozen=True, eq=False)
class Slot:
    """The actors of one cell.

    Attributes:
        actors: how many actors compute.
        share: what each takes.
        worker: the trial worker, which hosts the first cohort.
        cohorts: the actors of the other cohorts.
        group: their placement group.
    """

    actors: int
    share: Share
    worker: Any
    cohorts: list[Any]
    group: PlacementGroup

    @classmethod
    def open(cls, actors: int, share: Share) -> Slot:
        """Reserve the shares of all actors at once, so that cells never wait for each other's, and start the actors."""
        bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
        group = placement_group([bundle] * actors, strategy="PACK")

        def placed(kind: type, bundle: int) -> Any:
            return ray.remote(kind).options(
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            )

        cohorts = [placed(CohortActor, bundle).remote(share) for bundle in range(1, actors)]
        return cls(actors, share, placed(TrialWorker, 0).remote(share, cohorts), cohorts, group)

    def close(self) -> None:
        """End the actors and give their shares back."""
        for actor in (self.worker, *self.cohorts):
            ray.kill(actor)
        remove_placement_group(self.group)


@dataclass
class Slots:
    """All slots of a bench, opened when they are needed.

    Attributes:
        nodes: what the cluster has.
        parallel: how many slots may work at a time.
    """

    nodes: tuple[Node, ...]
    parallel: int
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)

    def take(self, actors: int, share: Share, *, any_shape: bool = False) -> Slot | None:
        """A slot of ``actors`` actors with this share, or an idle one of ``any_shape``; None if another must be given back first.

        While no slot is busy, there is always one for a cell that fits at all.
        """
        if len(self.busy) >= self.parallel:
            return None
        slot = next((slot for slot in self.idle if any_shape or (slot.actors, slot.share) == (actors, share)), None)
        if slot is not None:
            self.idle.remove(slot)
        else:
            slot = self._open(actors, share)
        if slot is not None:
            self.busy.append(slot)
        return slot

    def _open(self, actors: int, share: Share) -> Slot | None:
        """A new slot, if it fits beside the busy ones; idle ones make room, those of another share first, for they may lie anywhere."""
        if not self._fit(self.busy, actors, share):
            return None
        for slot in [slot for slot in self.idle if slot.share != share]:
            self.idle.remove(slot)
            slot.close()
        while not self._fit([*self.busy, *self.idle], actors, share):
            self.idle.pop(0).close()
        return Slot.open(actors, share)

    def _fit(self, slots: Sequence[Slot], actors: int, share: Share) -> bool:
        return fit_together([*(slot.share for slot in slots for _ in range(slot.actors)), *[share] * actors], self.nodes)

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
