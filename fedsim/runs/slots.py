"""Slots: the actors that work on one cell, reserved together and kept for the next cell of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.planning.node import Node, Share, fit_together
from fedsim.runs.worker import CohortActor, TrialWorker

PLACING = 1
"""Whole seconds to wait for a new reservation before something else is looked at."""


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
    def start(cls, actors: int, share: Share, group: PlacementGroup) -> Slot:
        """Start the actors in what is reserved for them."""

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
        nodes: what the cluster has now.
        parallel: how many slots may work at a time.
        opening: what is being reserved for the next slot, and for which actors.
    """

    nodes: tuple[Node, ...]
    parallel: int
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)
    opening: tuple[int, Share, PlacementGroup] | None = None

    def take(self, actors: int, share: Share, *, any_shape: bool = False) -> Slot | None:
        """A slot of ``actors`` actors with this share, or an idle one of ``any_shape``; None if there is no room for it now.

        What is reserved for it is in place: a cell is never bound to shares that a cluster no longer has.
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
        """A new slot, if it fits beside the busy ones; idle ones make room, those of another share first, for they may lie anywhere.

        All that idle make room for one that Ray still has not placed: what it lacks may be theirs.
        """
        if not self._fit(self.busy, actors, share):
            return None
        patience = 0
        if self.opening is None or self.opening[:2] != (actors, share):
            patience = PLACING
            self._reserve_nothing()
            for slot in [slot for slot in self.idle if slot.share != share]:
                self.idle.remove(slot)
                slot.close()
            while not self._fit([*self.busy, *self.idle], actors, share):
                self.idle.pop(0).close()
            # the shares of all actors at once, so that cells never wait for each other's
            bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
            self.opening = actors, share, placement_group([bundle] * actors, strategy="PACK")
        group = self.opening[2]
        if not group.wait(patience):
            while self.idle and not patience:
                self.idle.pop().close()
            return None
        self.opening = None
        return Slot.start(actors, share, group)

    def _fit(self, slots: Sequence[Slot], actors: int, share: Share) -> bool:
        return fit_together([*(slot.share for slot in slots for _ in range(slot.actors)), *[share] * actors], self.nodes)

    def _reserve_nothing(self) -> None:
        if self.opening is not None:
            remove_placement_group(self.opening[2])
            self.opening = None

    def give_back(self, slot: Slot) -> None:
        """The slot's work is done."""
        self.busy.remove(slot)
        self.idle.append(slot)

    def drop(self, slot: Slot) -> None:
        """The slot lost an actor: end what is left of it."""
        self.busy.remove(slot)
        slot.close()

    def displaced(self) -> list[Slot]:
        """The busy slots that lost the node of an actor; idle ones are ended."""
        table = placement_group_table()
        lost = [slot for slot in (*self.idle, *self.busy) if table.get(slot.group.id.hex(), {}).get("state") != "CREATED"]
        for slot in [slot for slot in lost if slot in self.idle]:
            self.idle.remove(slot)
            slot.close()
        return [slot for slot in lost if slot in self.busy]

    def close(self) -> None:
        """End all slots."""
        self._reserve_nothing()
        for slot in (*self.idle, *self.busy):
            slot.close()
        self.idle, self.busy = [], []
