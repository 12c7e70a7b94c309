"""The messages between server and clients, the public facts of a cell, and the record of what
ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data.embeddings import PublicRows as PublicRows
from fedsim.device import CPU, moved
from fedsim.models.probe import PROBE_C
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan, Release, Trust, Unit
from fedsim.seeds import Seeds

NUMBER_BYTES = 4
"""Bytes of a number on a network, as float32."""
Tensors = dict[str, Tensor]
Values = Mapping[str, float | Tensor]
"""Numbers by name; as tensors they stay on their device until the round is over."""


@dataclass(frozen=True)
class Diagnostic:
    """Values of all examples or clients, and their reduction in a round's record; not private, for
    people who may see the data.

    Attributes:
        values: numbers, or for ``spread`` vectors, one a client; tensors stay on their device until
            the round is over.
        reduction: ``mean``; ``quantiles``: 5, 25, 50, 75 and 95 %, recorded under the name with the
            suffix ``_quantiles``; ``spread``: the mean squared distance over pairs.
    """

    values: list[Any] | Tensor
    reduction: Literal["mean", "quantiles", "spread"] = "mean"

    @classmethod
    def of(cls, value: DiagnosticLike) -> Diagnostic:
        """A diagnostic as it is; bare values are reduced to their mean."""
        if isinstance(value, Diagnostic):
            return value
        return cls(value)

    @classmethod
    def reduced(cls, parts: Sequence[Diagnostic]) -> Any:
        """The reduction of the values of all ``parts``, on the CPU; None, or [] for quantiles, if
        there are too few values.
        """
        reduction = parts[0].reduction
        held = [part.values for part in parts if len(part.values)]
        values = [
            np.asarray(value.detach() if isinstance(value, Tensor) else value, np.float64)
            for value in held
        ]
        if values:
            numbers = np.concatenate(values)
        else:
            numbers = np.empty(0)
        if reduction == "quantiles":
            if len(numbers):
                return np.quantile(numbers, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            return []
        if reduction == "spread":
            # the mean of |a - b|^2 over pairs is twice the unbiased variance
            if len(numbers) > 1:
                return 2 * float(np.var(numbers, axis=0, ddof=1).sum())
            return None
        if len(numbers):
            return float(np.mean(numbers))
        return None


DiagnosticLike = list[Any] | Tensor | Diagnostic
"""Values of all examples or clients; bare values are reduced to their mean."""


@dataclass(frozen=True)
class Task:
    """The public facts of a cell: shapes, the number of clients, unit and trust of its privacy, and
    the evaluation's probe.

    ``public`` are the grid's public rows, for a method that says
    :meth:`fedsim.methods.algorithm.Algorithm.uses_public`, else None.
    """

    dim: int
    classes: int
    clients: int
    unit: Unit = "example"
    trust: Trust = "aggregate"
    probe_c: float = PROBE_C
    public: PublicRows | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Round:
    """One round of a training.

    Attributes:
        number: counted from 0 over all phases.
        phase: the phase's number, from 0.
        step: counted from 0 within the phase.
        stream: number of its random streams; a round of n noisy steps has the n numbers from this
            one on.
        release: the phase's mechanism.
    """

    number: int
    phase: int
    step: int
    stream: int
    release: Release


@dataclass(frozen=True)
class Step:
    """One step of a mechanism on a cohort, as :meth:`fedsim.methods.clients.Clients.add_noise` ran
    it.

    Attributes:
        mechanism: with the noise that each member added; infinite if no tensor needed any.
        number: the number that its noise was drawn with.
        members: the clients whose data it read.
        needs_server_noise: whether sums left the clients without noise, so that the server has to
            add it.
    """

    mechanism: Mechanism
    number: int
    members: tuple[int, ...]
    needs_server_noise: bool

    def noised(self, server: float) -> Mechanism:
        """With the least noise on any released tensor; ``server`` is the noise multiplier of what
        the server added to the sums.
        """
        own = self.mechanism.noise_multiplier
        return replace(
            self.mechanism, noise_multiplier=min(own, server) if self.needs_server_noise else own
        )


@dataclass
class RoundTrace:
    """The record of what the clients of a cohort did in a round, counted where it happens.

    Attributes:
        steps: the steps of mechanisms that ran.
        sampled: fingerprint of the sampled rows.
        noise: fingerprint of the drawn noise.
    """

    steps: list[Step] = field(default_factory=list)
    sampled: int = 0
    noise: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """A cohort's message after a round: the sum over its clients, never one client's part under
    ``trust: aggregate``.

    Attributes:
        sums: tensors by name; a tensor that only one cohort sends is passed on as it is.
        uplink_bytes: bytes that all clients together would send over a network; if participation is
            private, including those of clients that do not take part.
        downlink_bytes: bytes that they would receive, likewise; None: the harness counts the
            broadcast for every client.
        diagnostics: not private, for people who may see the data: values per example or per client
            by name.
        ran: the record of what ran; set by the harness, which overwrites an algorithm's.
    """

    sums: Tensors
    uplink_bytes: int = 0
    downlink_bytes: int | None = None
    diagnostics: Mapping[str, DiagnosticLike] = field(default_factory=dict)
    ran: RoundTrace = field(default_factory=RoundTrace)

    def on(self, device: torch.device) -> Message:
        """With all its tensors on ``device``, in one copy a dtype."""
        diagnostics = {name: Diagnostic.of(value) for name, value in self.diagnostics.items()}
        tensors = {
            ("diagnostic", name): part.values
            for name, part in diagnostics.items()
            if isinstance(part.values, Tensor)
        }
        there = moved(tensors | {("sum", name): value for name, value in self.sums.items()}, device)
        return replace(
            self,
            sums={name: there["sum", name] for name in self.sums},
            diagnostics={
                n: replace(part, values=there.get(("diagnostic", n), part.values))
                for n, part in diagnostics.items()
            },
        )


@dataclass
class Server:
    """The server's state.

    Attributes:
        model: with the shared parameters.
        seeds: the cell's seed tree, without its secret streams (:data:`fedsim.seeds.SECRET`).
        tensors: further state between rounds, by name.
        plan: the privacy plan, None without privacy.
        codes: after the last round the released client codes by name, ``[clients, ...]``; empty if
            none are released.
        device: of its model and tensors.
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
        self.tensors = moved(self.tensors, device)
        self.codes = moved(self.codes, device)
        self.device = device
        return self

    def noise_std(self, release: str, clients: int) -> float:
        """Standard deviation of the noise in a release's sum; 0 without a plan."""
        if self.plan is None:
            return 0.0
        return self.plan.noise_std_of_sum(release, clients)
