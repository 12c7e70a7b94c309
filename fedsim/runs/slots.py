"""Slots: the actors that work on one cell, reserved together and kept for the next cell of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.planning.node import Node, Share, fit_together
from fedsim.runs.engine import Engine, Slot

PLACING = 1
"""Whole seconds to wait for a new reservation before something else is looked at."""


@dataclass
class Slots:
    """All slots of a bench, opened when they are needed.

    Attributes:
        engine: runs them.
        nodes: what the cluster has now.
        parallel: how many slots may work at a time.
        opening: what is being reserved for the next slot, and for which actors.
    """

    engine: Engine
    nodes: tuple[Node, ...]
    parallel: int
    idle: list[Slot] = field(default_factory=list)
    busy: list[Slot] = field(default_factory=list)
    opening: tuple[int, Share, Any] | None = None

    def take(self, actors: int, share: Share, *, any_shape: bool = False, plug_in: str = "") -> Slot | None:
        """A slot of ``actors`` actors with this share, or an idle one of ``any_shape``; None if there is no room for it now.

        What is reserved for it is in place: a cell is never bound to shares that a cluster no longer has. Code that is not shipped may
        leave its process in any state: where it ran, nothing else runs any more.

        Args:
            actors: how many.
            share: what each takes.
            any_shape: whether any idle slot will do.
            plug_in: the algorithm that is not shipped and whose code will run; empty: none.
        """
        if len(self.busy) >= self.parallel:
            return None
        usable = (slot for slot in self.idle if slot.plug_in in ("", plug_in))
        slot = next((slot for slot in usable if any_shape or (slot.actors, slot.share) == (actors, share)), None)
        if slot is not None:
            self.idle.remove(slot)
        else:
            slot = self._open(actors, share, plug_in)
        if slot is not None:
            slot.plug_in = plug_in or slot.plug_in
            self.busy.append(slot)
        return slot

    def _open(self, actors: int, share: Share, plug_in: str) -> Slot | None:
        """A new slot, if it fits beside the busy ones; idle ones make room, those of another share or plug-in first.

        All that idle make room for one that Ray still has not placed: what it lacks may be theirs.
        """
        if not self._fit(self.busy, actors, share):
            return None
        patience = 0
        if self.opening is None or self.opening[:2] != (actors, share):
            patience = PLACING
            self._reserve_nothing()
            for slot in [slot for slot in self.idle if slot.share != share or slot.plug_in not in ("", plug_in)]:
                self.idle.remove(slot)
                self.engine.close(slot)
            while not self._fit([*self.busy, *self.idle], actors, share):
                self.engine.close(self.idle.pop(0))
            self.opening = actors, share, self.engine.reserve(actors, share)
        opened = self.engine.opened(self.opening[2], actors, share, patience)
        if opened is None:
            while self.idle and not patience:
                self.engine.close(self.idle.pop())
            return None
        self.opening = None
        return opened

    def _fit(self, slots: Sequence[Slot], actors: int, share: Share) -> bool:
        return fit_together([*(slot.share for slot in slots for _ in range(slot.actors)), *[share] * actors], self.nodes)

    def _reserve_nothing(self) -> None:
        if self.opening is not None:
            self.engine.cancel(self.opening[2])
            self.opening = None

    def give_back(self, slot: Slot) -> None:
        """The slot's work is done."""
        self.busy.remove(slot)
        self.idle.append(slot)

    def drop(self, slot: Slot) -> None:
        """The slot lost an actor: end what is left of it."""
        self.busy.remove(slot)
        self.engine.close(slot)

    def displaced(self) -> list[Slot]:
        """The busy slots that lost the node of an actor; idle ones are ended."""
        lost = self.engine.lost([*self.idle, *self.busy])
        for slot in [slot for slot in lost if slot in self.idle]:
            self.idle.remove(slot)
            self.engine.close(slot)
        return [slot for slot in lost if slot in self.busy]

    def close(self) -> None:
        """End all slots."""
        self._reserve_nothing()
        for slot in (*self.idle, *self.busy):
            self.engine.close(slot)
        self.idle, self.busy = [], []
