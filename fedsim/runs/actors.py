"""The Ray actors: a worker that hosts the first cohort of a cell, and cohort actors for the others of a cell that is spread out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, bytes_of, moved
from fedsim.methods.messages import Message, Pool, Round, Tensors
from fedsim.planning.node import Share
from fedsim.runs.worker import Failure, Process, Worker, exited
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, join_clients, split_clients
from fedsim.training.trial import Trial

IN_THE_CALL = int(os.environ.get("RAY_max_direct_call_object_size", 100 * 2**10))  # noqa: SIM112 (Ray's spelling)
"""Bytes that Ray sends within a call (its own setting); more goes through the object store."""


def send_tensors_as_bytes() -> None:
    """Let Ray send tensors as arrays of bytes, which it does not pickle, and take them into memory of torch's own.

    Memory that Ray holds is read-only and aligned by chance.
    """
    ray.util.register_serializer(torch.Tensor, serializer=_sent, deserializer=_received)


def pass_breakpoints() -> None:
    """Let ``breakpoint()`` do nothing: where debugpy is installed Ray would wait for a debugger, and nothing would say so."""
    os.environ["PYTHONBREAKPOINT"] = "0"


def _sent(tensor: torch.Tensor) -> tuple[NDArray[np.uint8], torch.dtype, torch.Size]:
    return bytes_of(tensor), tensor.dtype, tensor.shape


def _received(sent: tuple[NDArray[np.uint8], torch.dtype, torch.Size]) -> torch.Tensor:
    content, dtype, shape = sent
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = content
    return tensor


class TrialWorker(Worker):
    """A worker whose further cohorts are on actors of their own.

    Args:
        share: what it may take.
        cohorts: the other actors of its slot.
    """

    def __init__(self, share: Share, cohorts: Sequence[Any] = ()) -> None:
        super().__init__(share)
        pass_breakpoints()
        send_tensors_as_bytes()
        self.cohorts = list(cohorts)

    def pool(self, trial: Trial, data: Embeddings, held: Sequence[Any], seeds: Seeds) -> Pool:
        """The clients of a cell, on all actors of the slot."""
        if len(trial.sizes) == 1:
            return super().pool(trial, data, held, seeds)
        return RayPool(self.cohorts, trial.cohorts(seeds), trial.data_key, data, held[0], self.device)

    def failure(self, error: Exception | SystemExit) -> Failure:
        """Why a cell failed; an exception of another actor comes wrapped, with the traceback over there as its text."""
        if isinstance(error, ray.exceptions.RayTaskError):
            return Failure(type(error.cause).__name__, str(error.cause), str(error))
        return super().failure(error)

    def goes_on(self, error: Exception | SystemExit) -> bool:
        """Not once a cohort's actor has died."""
        return not isinstance(error, ray.exceptions.RayActorError)


class CohortActor:
    """Hosts one cohort of a cell that is spread over several actors."""

    def __init__(self, share: Share) -> None:
        pass_breakpoints()
        send_tensors_as_bytes()
        self.process = Process(share)
        self.cohort: Cohort | None = None

    def host(self, spec: CohortSpec, key: str, data: Embeddings) -> None:
        """Take the clients of ``spec``, of the data set with this key, up, in place of any earlier ones."""
        self.cohort = None
        self.process.make_ready(limited=True)
        data = self.process.same(key, data)
        try:
            self.cohort = Cohort(spec.given(data.public), data.x_train, data.y_train, self.process.device)
        except SystemExit as error:
            raise exited(error) from error

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the cohort; what it returns travels by the CPU, in one copy."""
        try:
            returned = getattr(self.cohort, method)(*args)
        except SystemExit as error:
            raise exited(error) from error
        return returned.on(CPU) if isinstance(returned, Message) else returned


class RayPool:
    """The cohorts of a cell, the first in this process and each other on its actor; what comes back is in client order.

    Args:
        actors: of all cohorts but the first.
        specs: of all cohorts.
        key: the data set's.
        data: the data set.
        data_ref: its reference in the object store.
        device: where the first cohort computes.
    """

    def __init__(
        self, actors: Sequence[Any], specs: Sequence[CohortSpec], key: str, data: Embeddings, data_ref: Any, device: torch.device
    ) -> None:
        self.actors, self.sizes = list(actors), [len(spec.members) for spec in specs]
        hosted = [actor.host.remote(spec.given(None), key, data_ref) for actor, spec in zip(self.actors, specs[1:], strict=True)]
        self.own = Cohort(specs[0], data.x_train, data.y_train, device)
        ray.get(hosted)

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`; a large broadcast goes into the object store once."""
        size, there = sum(value.nbytes for value in broadcast.values()), moved(broadcast, CPU)
        sent = ray.put(there) if size > IN_THE_CALL else there
        others = [actor.call.remote("round", round_, sent) for actor in self.actors]
        return [self.own.round(round_, broadcast), *ray.get(others)]

    def released(self, names: Sequence[str]) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        others = [actor.call.remote("released", names) for actor in self.actors]
        return join_clients([self.own.released(names), *ray.get(others)])

    def state(self) -> Tensors:
        """See :class:`fedsim.methods.messages.Pool`."""
        others = [actor.call.remote("state") for actor in self.actors]
        return join_clients([self.own.state(), *ray.get(others)])

    def load_state(self, tensors: Tensors) -> None:
        """See :class:`fedsim.methods.messages.Pool`."""
        own, *parts = split_clients(tensors, self.sizes)
        others = [actor.call.remote("load_state", part) for actor, part in zip(self.actors, parts, strict=True)]
        self.own.load_state(own)
        ray.get(others)
