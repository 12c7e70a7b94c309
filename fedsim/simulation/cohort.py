"""A cohort: the clients that one actor hosts, computed together, and the pools that hold one or several cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Ran, Round, Task, Tensors
from fedsim.methods.parameters import in_order, load_parameters, local_names
from fedsim.methods.registry import lookup
from fedsim.models.initialise import initial_model
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds


@dataclass(frozen=True)
class CohortSpec:
    """What an actor needs to host a cohort, besides the data set.

    Attributes:
        algorithm, params: as in the cell.
        task: the public facts.
        plan: the privacy plan, None without privacy.
        seeds: the cell's seed tree.
        members: client numbers, ascending.
        rows: each member's training rows.
    """

    algorithm: str
    params: dict[str, Any]
    task: Task
    plan: PrivacyPlan | None
    seeds: Seeds
    members: tuple[int, ...]
    rows: tuple[NDArray[np.int64], ...]


def build_algorithm(name: str, params: dict[str, Any], task: Task) -> Algorithm:
    """The algorithm with validated parameters."""
    cls = lookup(name)
    return cls(cls.Params.model_validate(params), task)


class Cohort:
    """Hosts clients: one model with a slice per client, one batch for all."""

    def __init__(self, spec: CohortSpec, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
        self.algorithm = build_algorithm(spec.algorithm, spec.params, spec.task)
        self.phases = self.algorithm.phases()
        model = initial_model(self.algorithm.build, spec.seeds, spec.members)
        self.clients = Clients(
            spec.members,
            tuple(aligned(x[rows]) for rows in spec.rows),
            tuple(aligned(y[rows]) for rows in spec.rows),
            spec.seeds,
            spec.plan,
            model,
            row_numbers=() if spec.plan else tuple(torch.from_numpy(rows) for rows in spec.rows),
        )
        self.algorithm.start_clients(self.clients)

    def round(self, round_: Round, broadcast: Tensors) -> Message:
        """One round's computation, with what really ran."""
        self.clients.ran = Ran()
        message = self.phases[round_.phase].at_clients(self.clients, round_, broadcast)
        self.clients.state.update(in_order(self.clients.state))
        return replace(message, ran=self.clients.ran)

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors by name, averaged over iterates where the algorithm keeps averages."""
        current = dict(self.clients.model.named_parameters())
        return {name: self.clients.state.get(f"average.{name}", current[name].detach()) for name in names}

    def state(self) -> Tensors:
        """All private state, ``[members, ...]`` each but for counters."""
        parameters = dict(self.clients.model.named_parameters())
        kept = {f"model.{name}": parameters[name].detach().clone() for name in local_names(self.clients.model)}
        return kept | {f"state.{name}": value.clone() for name, value in self.clients.state.items()}

    def load_state(self, tensors: Tensors) -> None:
        """Take up a checkpoint."""
        load_parameters(self.clients.model, tensors, "model.")
        self.clients.state.update({k[6:]: v.clone() for k, v in tensors.items() if k.startswith("state.")})


def aligned(values: NDArray[Any]) -> torch.Tensor:
    """A tensor in memory of torch's own, whose alignment is always the same: products of matrices may round by alignment."""
    return torch.from_numpy(values).clone()


class LocalPool:
    """All cohorts in this process, computed one after another."""

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = cohorts

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        return [cohort.round(round_, broadcast) for cohort in self.cohorts]

    def released(self, names: Sequence[str]) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        return join_clients([cohort.released(names) for cohort in self.cohorts])

    def state(self) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        return join_clients([cohort.state() for cohort in self.cohorts])

    def load_state(self, tensors: Tensors) -> None:
        """See :class:`fedsim.methods.messages.Pool`."""
        sizes = [len(cohort.clients.members) for cohort in self.cohorts]
        for cohort, part in zip(self.cohorts, split_clients(tensors, sizes), strict=True):
            cohort.load_state(part)


def join_clients(parts: Sequence[Tensors]) -> Tensors:
    """Cohorts' per-client tensors as one, in client order; counters (no dimension) are equal everywhere."""
    return {name: value if value.dim() == 0 else torch.cat([part[name] for part in parts]) for name, value in parts[0].items()}


def split_clients(tensors: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    """The inverse of :func:`join_clients` for cohorts of ``sizes`` clients."""
    parts: list[Tensors] = [{} for _ in sizes]
    for name, value in tensors.items():
        pieces = [value] * len(sizes) if value.dim() == 0 else torch.split(value, list(sizes))
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return parts
