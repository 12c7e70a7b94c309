"""Cohorts and pools, in which the clients of a cell compute.

A cohort is the group of clients that one actor hosts and computes together. A pool is a sequence of
one or several cohorts.
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
from fedsim.methods.member_rows import MemberRows
from fedsim.methods.messages import Message, PublicRows, Round, RoundTrace, Task, Tensors
from fedsim.methods.parameters import in_order, load_parameters, local_names
from fedsim.models.layers import initial_model
from fedsim.partition.schemes import RowNumbers
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.state import below, copied, nested


@dataclass(frozen=True)
class CohortSpec:
    """Everything that an actor needs to host a cohort, except the data set.

    Attributes:
        algorithm: the name of the algorithm.
        params: its parameters, as in the grid.
        task: the public facts of the cell.
        plan: the cell's privacy plan; None if epsilon has no meaning.
        seeds: the cell's seed tree.
        members: the numbers of the cohort's clients, ascending.
        rows: the numbers of each member's training examples.
        groups: if the unit is a group: the number of each example's group within its client,
            ascending from 0; else None.
    """

    algorithm: str
    params: dict[str, Any]
    task: Task
    plan: PrivacyPlan | None
    seeds: Seeds
    members: tuple[int, ...]
    rows: RowNumbers
    groups: RowNumbers | None = None

    def given(self, public: PublicRows | None) -> CohortSpec:
        """Return a copy with other public examples in its task, or with None.

        A specification is sent to an actor without public examples, because they travel with the
        data set.
        """
        return replace(self, task=replace(self.task, public=public))


def build_algorithm(name: str, params: dict[str, Any], task: Task) -> Algorithm:
    """Return the algorithm with validated parameters.

    Public examples are removed from its task unless it says that it uses them.
    """
    cls = lookup(name)
    valid_params = cls.Params.model_validate(params)
    algorithm = cls(valid_params, task)
    if task.public is None or algorithm.uses_public():
        return algorithm
    without_public = replace(task, public=None)
    return cls(valid_params, without_public)


class Cohort:
    """The clients of one actor: one model with a slice per client, and one batch for all of them.

    Args:
        spec: the clients, the algorithm, the plan and the seeds.
        x: embeddings of all training examples of the data set ``[n, d]``.
        y: their labels ``[n]``.
        device: where to compute.
        clients: the class of the clients: :class:`fedsim.methods.clients.Clients`, or one that also
            watches what they do.
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
        groups = None
        if spec.groups is not None:
            groups = tuple(map(torch.from_numpy, spec.groups))
        numbers = np.concatenate(spec.rows)
        sizes = list(map(len, spec.rows))

        def by_client(values: NDArray[Any]) -> tuple[torch.Tensor, ...]:
            """Return the cohort's values on the device, one tensor for each client."""
            return torch.split(to_device(torch.from_numpy(values), device), sizes)

        embeddings: Sequence[torch.Tensor]
        if device == CPU:
            embeddings = MemberRows(np.ascontiguousarray(x), by_client(numbers))
        else:
            embeddings = by_client(x[numbers])
        self.clients = clients(
            spec.members,
            embeddings,
            by_client(y[numbers]),
            spec.seeds,
            spec.plan,
            model,
            groups,
            device=device,
        )
        self.algorithm.start_clients(self.clients)

    def round(self, round_: Round, broadcast: Tensors) -> Message:
        """Compute one round of all members, and return their message with the record of its steps.

        Args:
            round_: the round.
            broadcast: the tensors that every client receives, by name.
        """
        clients = self.clients
        first_step = round_.stream
        clients.ran = RoundTrace()
        clients.steps = range(first_step, first_step + round_.release.per_round)
        phase = self.phases[round_.phase]
        on_device = moved(broadcast, clients.device)
        message = phase.at_clients(clients, round_, on_device)
        clients.state.update(in_order(clients.state))
        received = message.downlink_bytes
        if received is None:
            size = sum(value.nbytes for value in broadcast.values())
            received = size * len(clients.members)
        return replace(message, ran=clients.ran, downlink_bytes=received)

    def released(self, names: Sequence[str]) -> Tensors:
        """Return per-client tensors by name, ``[members, ...]``, on the CPU.

        If the algorithm keeps the mean of a tensor over iterates, the mean is returned.
        """
        parameters = dict(self.clients.model.named_parameters())
        state = self.clients.state
        tensors = {}
        for name in names:
            latest = state.get(name, parameters[name].detach())
            tensors[name] = state.get(f"average.{name}", latest)
        return moved(tensors, CPU)

    def state(self) -> Tensors:
        """Return all private state on the CPU: counters, or tensors ``[members, ...]``."""
        model = self.clients.model
        parameters = dict(model.named_parameters())
        local = {name: parameters[name] for name in local_names(model)}
        return copied(nested("model", local) | nested("state", self.clients.state))

    def load_state(self, tensors: Tensors) -> None:
        """Load the state that :meth:`state` returned, from a checkpoint."""
        load_parameters(self.clients.model, tensors, "model.")
        self.clients.state.update(moved(copied(below("state", tensors)), self.clients.device))


class LocalPool:
    """All clients of a cell in this process; cohorts compute one after another.

    Args:
        cohorts: the cohorts, in client order.
        tried: an algorithm whose contract is tested after each round; None for no test.
    """

    def __init__(self, cohorts: Sequence[Cohort], tried: Algorithm | None = None) -> None:
        self.cohorts = cohorts
        self.sizes = [len(cohort.clients.members) for cohort in cohorts]
        self.tried = tried

    def each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every cohort and return its results, in client order.

        Args:
            method: the method's name.
            arguments: the arguments for each cohort.
        """
        return [
            getattr(cohort, method)(*cohort_arguments)
            for cohort, cohort_arguments in zip(self.cohorts, arguments, strict=True)
        ]

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Let every cohort compute a round, and return their messages in client order."""
        messages = self.each("round", [(round_, broadcast) for _ in self.sizes])
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        return messages

    def released(self, names: Sequence[str]) -> Tensors:
        """Return per-client tensors that the plan protects, ``[clients, ...]``, in client order."""
        return join_clients(self.each("released", [(names,) for _ in self.sizes]))

    def state(self) -> Tensors:
        """Return all private client state, for a checkpoint."""
        return join_clients(self.each("state", [() for _ in self.sizes]))

    def load_state(self, tensors: Tensors) -> None:
        """Load the client state of a checkpoint."""
        self.each("load_state", [(state,) for state in split_clients(tensors, self.sizes)])


def join_clients(cohort_tensors: Sequence[Tensors]) -> Tensors:
    """Return the per-client tensors of several cohorts as one, in client order.

    Counters (tensors without a dimension) are equal in all cohorts, so the first is taken.
    """
    joined = {}
    for name, value in cohort_tensors[0].items():
        if value.dim():
            joined[name] = torch.cat([tensors[name] for tensors in cohort_tensors])
        else:
            joined[name] = value
    return joined


def split_clients(tensors: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """Return the tensors of every cohort: the inverse of :func:`join_clients`.

    Args:
        tensors: the joined tensors, ``[clients, ...]``, or counters without a dimension.
        sizes: the number of clients of each cohort, in client order.
    """
    cohort_tensors = []
    end = 0
    for size in sizes:
        end += size
        members = slice(end - size, end)
        member_tensors = {}
        for name, value in tensors.items():
            member_tensors[name] = value[members] if value.dim() else value
        cohort_tensors.append(member_tensors)
    return cohort_tensors
