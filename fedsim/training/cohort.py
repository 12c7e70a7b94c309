"""A cohort: the clients that one actor hosts, computed together, and the pools that hold one or
several cohorts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.device import CPU, moved, to_device
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, PublicRows, Round, RoundTrace, Task, Tensors
from fedsim.methods.parameters import in_order, load_parameters, local_names
from fedsim.models.layers import initial_model
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.state import below, copied, nested


@dataclass(frozen=True)
class CohortSpec:
    """All that an actor needs to host a cohort, besides the data set.

    Attributes:
        members: client numbers, ascending.
        rows: each member's training rows.
        groups: if the unit is a group: the number of each row's group within its client, ascending
            from 0.
    """

    algorithm: str
    params: dict[str, Any]
    task: Task
    plan: PrivacyPlan | None
    seeds: Seeds
    members: tuple[int, ...]
    rows: tuple[NDArray[np.int64], ...]
    groups: tuple[NDArray[np.int64], ...] | None = None

    def given(self, public: PublicRows | None) -> CohortSpec:
        """With other public rows in its task: None where it is sent, for rows travel with the data
        set.
        """
        return replace(self, task=replace(self.task, public=public))


def build_algorithm(name: str, params: dict[str, Any], task: Task) -> Algorithm:
    """The algorithm with validated parameters; public rows are kept from one that does not say that
    it uses them.
    """
    cls = lookup(name)
    algorithm = cls(cls.Params.model_validate(params), task)
    if task.public is None or algorithm.uses_public():
        return algorithm
    return cls(algorithm.params, replace(task, public=None))


class Cohort:
    """Hosts the clients of ``spec``: one model with a slice per client, one batch for all; ``x, y``
    are the data set's training rows.

    ``clients`` is the class that they are of, :class:`fedsim.methods.clients.Clients` or one that
    also watches what they do.
    """

    def __init__(
        self,
        spec: CohortSpec,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        device: torch.device = CPU,
        clients: Callable[..., Clients] = Clients,
    ) -> None:
        self.algorithm = build_algorithm(spec.algorithm, spec.params, spec.task)
        self.phases = self.algorithm.phases()
        model = initial_model(self.algorithm.build, spec.seeds, spec.members).to(device)
        self.clients = clients(
            spec.members,
            parts(x, spec.rows, device),
            parts(y, spec.rows, device),
            spec.seeds,
            spec.plan,
            model,
            None if spec.groups is None else tuple(map(torch.from_numpy, spec.groups)),
            device=device,
        )
        self.algorithm.start_clients(self.clients)

    def round(self, round_: Round, broadcast: Tensors) -> Message:
        """One round's computation, with the record of what ran."""
        self.clients.ran = RoundTrace()
        self.clients.steps = range(round_.stream, round_.stream + round_.release.per_round)
        message = self.phases[round_.phase].at_clients(
            self.clients, round_, moved(broadcast, self.clients.device)
        )
        self.clients.state.update(in_order(self.clients.state))
        received = message.downlink_bytes
        if received is None:
            received = len(self.clients.members) * sum(value.nbytes for value in broadcast.values())
        return replace(message, ran=self.clients.ran, downlink_bytes=received)

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors by name, averaged over iterates if the algorithm keeps averages."""
        current = dict(self.clients.model.named_parameters())
        state = self.clients.state
        return moved(
            {
                name: state.get(f"average.{name}", state.get(name, current[name].detach()))
                for name in names
            },
            CPU,
        )

    def state(self) -> Tensors:
        """All private state, counters or ``[members, ...]``, on the CPU."""
        parameters = dict(self.clients.model.named_parameters())
        kept = {name: parameters[name] for name in local_names(self.clients.model)}
        return copied(nested("model", kept) | nested("state", self.clients.state))

    def load_state(self, tensors: Tensors) -> None:
        """Load a checkpoint's client state."""
        load_parameters(self.clients.model, tensors, "model.")
        self.clients.state.update(moved(copied(below("state", tensors)), self.clients.device))


def parts(
    values: NDArray[Any], rows: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Each client's ``rows`` of all ``values``, on ``device``.

    On the CPU in memory that torch allocates, which is always aligned: rounding of matrix products
    may depend on alignment.
    """
    if device == CPU:
        return tuple(torch.from_numpy(values[own]).clone() for own in rows)
    whole = to_device(torch.from_numpy(values), device)
    return tuple(whole.index_select(0, to_device(torch.from_numpy(own), device)) for own in rows)


class LocalPool:
    """All clients of a cell, in cohorts: here all in this process, computed one after another.

    After each round the contract of the algorithm ``tried``, if there is one, is tried for it.
    """

    def __init__(self, cohorts: Sequence[Cohort], tried: Algorithm | None = None) -> None:
        self.cohorts = cohorts
        self.sizes = [len(cohort.clients.members) for cohort in cohorts]
        self.tried = tried

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every cohort, with its own arguments; what it returns is in client
        order.
        """
        return [
            getattr(cohort, method)(*own)
            for cohort, own in zip(self.cohorts, arguments, strict=True)
        ]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Let every cohort compute; messages in client order."""
        messages = self.each("round", [(round_, broadcast) for _ in self.sizes])
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        return messages

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors that the plan protects, ``[clients, ...]``, in client order."""
        return join_clients(self.each("released", [(names,) for _ in self.sizes]))

    def state(self) -> Tensors:
        """All private client state, for a checkpoint."""
        return join_clients(self.each("state", [() for _ in self.sizes]))

    def load_state(self, tensors: Tensors) -> None:
        """Load a checkpoint's client state."""
        self.each("load_state", [(part,) for part in split_clients(tensors, self.sizes)])


def join_clients(parts: Sequence[Tensors]) -> Tensors:
    """Cohorts' per-client tensors as one, in client order; counters (no dimension) are equal
    everywhere.
    """
    return {
        name: value if value.dim() == 0 else torch.cat([part[name] for part in parts])
        for name, value in parts[0].items()
    }


def split_clients(tensors: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """The inverse of :func:`join_clients` for cohorts of ``sizes`` clients."""
    parts: list[Tensors] = [{} for _ in sizes]
    for name, value in tensors.items():
        if value.dim() == 0:
            pieces: Sequence[torch.Tensor] = [value] * len(sizes)
        else:
            pieces = torch.split(value, list(sizes))
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return parts
