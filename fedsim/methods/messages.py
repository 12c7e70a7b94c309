"""What travels between server and clients, what everybody may know, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.device import CPU, moved
from fedsim.models.probe import PROBE_C
from fedsim.privacy.ledger import Entry
from fedsim.privacy.plan import PrivacyPlan, Release, Trust, Unit
from fedsim.seeds import Seeds

NUMBER_BYTES = 4
"""What a number weighs on a network, as float32."""
Tensors = dict[str, Tensor]
Values = Mapping[str, float | Tensor]
"""Numbers by name; one that a device computed may stay there as a tensor until the round is over."""
Reduction = Literal["mean", "quantiles", "spread"]


@dataclass(frozen=True)
class Diagnostic:
    """Values of all examples or clients, and what a round's record says of them; not private, for people who may see the data.

    Attributes:
        values: numbers, or for ``spread`` vectors, one a client; tensors stay on their device until the round is over.
        told: ``mean``; ``quantiles``: 5, 25, 50, 75 and 95 %, under the name with ``_quantiles`` behind it; ``spread``: the mean squared
            distance over pairs.
    """

    values: list[Any] | Tensor
    told: Reduction = "mean"

    @classmethod
    def told_of(cls, parts: Sequence[Diagnostic]) -> Any:
        """What is said of the values of all ``parts``, on the CPU; None, or [] for quantiles, where they are too few."""
        told, held = parts[0].told, [_float64(part.values) for part in parts if len(part.values)]
        numbers = np.concatenate(held) if held else np.empty(0)
        if told == "quantiles":
            return np.quantile(numbers, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(numbers) else []
        if told == "spread":
            # over pairs it is twice the unbiased variance
            return 2 * float(np.var(numbers, axis=0, ddof=1).sum()) if len(numbers) > 1 else None
        return float(np.mean(numbers)) if len(numbers) else None


def _float64(values: list[Any] | Tensor) -> NDArray[np.float64]:
    return np.asarray(values.detach().numpy() if isinstance(values, Tensor) else values, np.float64)


Told = list[Any] | Tensor | Diagnostic
"""Values of all examples or clients; without a word more their mean is told."""


@dataclass(frozen=True)
class Task:
    """What everybody may know about a cell: shapes, the number of clients, whom privacy protects from whom, and the evaluation's probe."""

    dim: int
    classes: int
    clients: int
    unit: Unit = "example"
    trust: Trust = "aggregate"
    probe_c: float = PROBE_C


@dataclass(frozen=True)
class Round:
    """Where a training stands.

    Attributes:
        number: counted from 0 over all phases.
        phase: which phase, counted from 0.
        step: counted from 0 within the phase.
        stream: number of its random streams; a round of several noisy steps takes as many, from this one on.
        release: the phase's mechanism.
    """

    number: int
    phase: int
    step: int
    stream: int
    release: Release


@dataclass(frozen=True)
class MechanismStep:
    """One step of a mechanism on a cohort, as :meth:`fedsim.methods.clients.Clients.add_noise` ran it.

    Attributes:
        release: its release.
        number: the number that its noise was drawn with.
        members: whose data it was computed on.
        sample_rate: of the release.
        noise_multiplier: of the noise that each member added; inf where no tensor got any.
        bare: whether sums left the clients without noise, so that the server has to add it.
    """

    release: str
    number: int
    members: tuple[int, ...]
    sample_rate: float
    noise_multiplier: float
    bare: bool

    def entries(self, server: float) -> Iterator[Entry]:
        """A ledger entry a member: the least noise on anything that was released; none where nothing was.

        Args:
            server: noise multiplier of what the server added to the sums; 0 for none.
        """
        multiplier = min(self.noise_multiplier, server) if self.bare else self.noise_multiplier
        for client in self.members if multiplier < math.inf else ():
            yield Entry(self.release, self.number, client, multiplier, self.sample_rate)


@dataclass
class Ran:
    """What the clients of a cohort did in a round, counted where it happens.

    Attributes:
        steps: the steps of mechanisms that ran.
        sampled: fingerprint of the rows that were sampled.
        noise: fingerprint of the noise that was drawn.
    """

    steps: list[MechanismStep] = field(default_factory=list)
    sampled: int = 0
    noise: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a cohort sends after a round: the sum over its clients, never one client's part under ``trust: aggregate``.

    Attributes:
        sums: tensors by name; what only one cohort sends under a name goes on as it is.
        uplink_bytes: what the clients would have sent over a network, all of them together; where it is private who takes part, of
            those who do not, too.
        downlink_bytes: what they would have received, likewise; None: the harness counts the broadcast for every client.
        diagnostics: not private, for people who may see the data: values per example or per client by name.
        ran: what happened; counted by the harness, whatever an algorithm gives here.
    """

    sums: Tensors
    uplink_bytes: int = 0
    downlink_bytes: int | None = None
    diagnostics: Mapping[str, Told] = field(default_factory=dict)
    ran: Ran = field(default_factory=Ran)

    def on(self, device: torch.device) -> Message:
        """With all its tensors on ``device``, in one copy a dtype."""
        told = {name: each if isinstance(each, Diagnostic) else Diagnostic(each) for name, each in self.diagnostics.items()}
        tensors = {("told", name): each.values for name, each in told.items() if isinstance(each.values, Tensor)}
        there = moved(tensors | {("sum", name): value for name, value in self.sums.items()}, device)
        diagnostics = {name: Diagnostic(there.get(("told", name), each.values), each.told) for name, each in told.items()}
        return replace(self, sums={name: there["sum", name] for name in self.sums}, diagnostics=diagnostics)


@dataclass
class Server:
    """The server's state.

    Attributes:
        model: with the shared parameters.
        seeds: the cell's seed tree, without its secret streams (:data:`fedsim.seeds.SECRET`).
        tensors: by name, whatever else lives on between rounds.
        plan: the privacy plan, None without privacy.
        codes: after the last round the released client codes by name, ``[clients, ...]``; empty where none are released.
        device: where its model and tensors are.
    """

    model: nn.Module
    seeds: Seeds
    tensors: Tensors = field(default_factory=dict)
    plan: PrivacyPlan | None = None
    codes: Tensors = field(default_factory=dict)
    device: torch.device = CPU

    def to(self, device: torch.device) -> Server:
        """Itself, on ``device``."""
        self.model.to(device)
        self.tensors, self.codes, self.device = moved(self.tensors, device), moved(self.codes, device), device
        return self

    def noise_std(self, release: str, clients: int) -> float:
        """Standard deviation of the noise that a release's sum carries; 0 without a plan."""
        return 0.0 if self.plan is None else self.plan.noise_std_of_sum(release, clients)


class Pool(Protocol):
    """All clients of a cell, however they are packed onto actors."""

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """Let every cohort compute; messages in client order."""

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors that the plan protects, ``[clients, ...]``, in client order."""

    def state(self) -> Tensors:
        """All private client state, for a checkpoint."""

    def load_state(self, tensors: Tensors) -> None:
        """Take up a checkpoint's client state."""
