"""Defines the message from clients to the server, and other records that algorithms read.

They are the public facts of a cell (:class:`Task`), the numbers of a round (:class:`Round`), the
server's state (:class:`Server`), diagnostics, and the trace of a round (:class:`RoundTrace`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsim.data.embeddings import PublicRows as PublicRows
from fedsim.device import CPU, moved
from fedsim.models.probe import PROBE_C
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import PrivacyPlan, Release, Trust, Unit
from fedsim.seeds import Seeds

NUMBER_BYTES = 4
"""Bytes of a number on a network, where numbers travel as float32."""
Tensors = dict[str, Tensor]
"""Tensors by name."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by name, such as those of the random draws that one example's loss needs."""
Values = Mapping[str, float | Tensor]
"""Numbers by name; those that are tensors stay on their device until the round is over."""


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that are recorded of a diagnostic's values."""


@dataclass(frozen=True)
class Diagnostic:
    """Values of all examples or clients, and how a round's record reduces them.

    Diagnostics carry no noise. They are for people who may see the data.

    Attributes:
        values: one number per example or client; for ``spread`` one vector per client. Tensors stay
            on their device until the round is over.
        reduction: ``mean``, the mean of the values; ``quantiles``, the quantiles
            :data:`QUANTILES`; or ``spread``, the mean squared distance over pairs of clients. The
            names of recorded quantiles get the suffix ``_quantiles``.
    """

    values: list[Any] | Tensor
    reduction: Literal["mean", "quantiles", "spread"] = "mean"

    @classmethod
    def of(cls, value: DiagnosticLike) -> Diagnostic:
        """Return ``value`` as a diagnostic; bare values are reduced to their mean."""
        if isinstance(value, Diagnostic):
            return value
        return cls(value)

    @classmethod
    def reduced(cls, parts: Sequence[Diagnostic]) -> Any:
        """Return the reduction of the values of all ``parts`` together.

        Args:
            parts: diagnostics of one name, one per cohort, with values on the CPU.

        Returns:
            A number, or a list of numbers for ``quantiles``. Without values it is None, or [] for
            quantiles. A spread of one client is None.
        """
        arrays = [part.array() for part in parts if len(part.values)]
        reduction = parts[0].reduction
        if reduction == "quantiles":
            if not arrays:
                return []
            return np.quantile(np.concatenate(arrays), QUANTILES).tolist()
        if not arrays:
            return None
        numbers = np.concatenate(arrays)
        if reduction == "mean":
            return float(np.mean(numbers))
        if len(numbers) == 1:
            return None
        # The mean of |a - b|^2 over pairs is twice the unbiased variance.
        return 2 * float(np.var(numbers, axis=0, ddof=1).sum())

    def array(self) -> NDArray[np.float64]:
        """Return the values as a numpy array; they must be on the CPU."""
        values = self.values
        if isinstance(values, Tensor):
            values = values.detach()
        return np.asarray(values, np.float64)


DiagnosticLike = list[Any] | Tensor | Diagnostic
"""A diagnostic, or bare values of all examples or clients, which are reduced to their mean."""


@dataclass(frozen=True)
class Task:
    """The public facts of a cell, which an algorithm may use freely.

    Attributes:
        dim: d, the dimension of embeddings.
        classes: C, the number of classes.
        clients: K, the number of clients.
        unit: what the budget protects: an example, a group of examples, or a client.
        trust: whom clients trust: the server (``aggregate``) or nobody (``silo``).
        probe_c: the inverse penalty (scikit-learn's ``C``) of the evaluation's linear probe.
        public: the grid's public examples. They are None unless the algorithm's
            :meth:`fedsim.methods.algorithm.Algorithm.uses_public` returns True.
        public_size: the size of the data set that the cell treats as public: the number of training
            units (examples, groups or clients), rounded down to a power of two. It is fixed when
            the cell is prepared. Two neighbouring data sets have the same public size in every
            run that compares them, even if the second one would round to another power. The
            default of 1 is for made-up cells.
    """

    dim: int
    classes: int
    clients: int
    unit: Unit = "example"
    trust: Trust = "aggregate"
    probe_c: float = PROBE_C
    public: PublicRows | None = field(default=None, compare=False, repr=False)
    public_size: int = 1


@dataclass(frozen=True)
class Round:
    """One round of a training.

    Attributes:
        number: the round's number, counted from 0 over all phases.
        phase: the number of its phase, from 0.
        step: the round's number within its phase, from 0.
        stream: the number of its first random stream. A round with n noisy steps uses the streams
            ``stream`` to ``stream + n - 1``.
        release: the mechanism of its phase.
    """

    number: int
    phase: int
    step: int
    stream: int
    release: Release


@dataclass(frozen=True)
class Step:
    """One step of a mechanism on a cohort.

    :meth:`fedsim.methods.clients.Clients.add_noise` records it.

    Attributes:
        mechanism: the mechanism, with the noise multiplier of each member's own noise. It is
            infinite if the members had no tensor to add noise to.
        number: the number of the step, with which its noise was drawn.
        members: the clients whose data it read.
        needs_server_noise: whether sums left the clients without noise, so that the server has to
            add it.
    """

    mechanism: Mechanism
    number: int
    members: tuple[int, ...]
    needs_server_noise: bool

    def noised(self, server: float) -> Mechanism:
        """Return the mechanism with the least noise on any released tensor.

        Args:
            server: the noise multiplier of what the server added to the sums.
        """
        if not self.needs_server_noise:
            return self.mechanism
        least = min(self.mechanism.noise_multiplier, server)
        return replace(self.mechanism, noise_multiplier=least)


@dataclass
class RoundTrace:
    """The record of what the clients of a cohort did in a round.

    Two runs with different samples or noise most likely have different sums of fingerprints.

    Attributes:
        steps: the steps of mechanisms that ran.
        sampled: the sum of the fingerprints of the samples.
        noise: the sum of the fingerprints of the drawn noise.
    """

    steps: list[Step] = field(default_factory=list)
    sampled: int = 0
    noise: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """The message of a cohort after a round, with sums over its clients.

    Under ``trust: aggregate`` an adversary sees only the sum over all cohorts. A tensor of a single
    client may be sent only with the client's own noise, or by an algorithm that is not private.

    Attributes:
        sums: tensors by name. A tensor that only one cohort sends is passed on as it is.
        uplink_bytes: bytes that all clients together would send over a network. If participation is
            private, clients that do not take part are counted too.
        downlink_bytes: bytes that all clients together would receive, counted in the same way. With
            None the harness counts the broadcast for every client.
        diagnostics: values per example or per client by name, without noise, for people who may see
            the data.
        ran: the record of what ran. The harness sets it, whatever an algorithm gives.
    """

    sums: Tensors
    uplink_bytes: int = 0
    downlink_bytes: int | None = None
    diagnostics: Mapping[str, DiagnosticLike] = field(default_factory=dict)
    ran: RoundTrace = field(default_factory=RoundTrace)

    def on(self, device: torch.device) -> Message:
        """Return the message with all its tensors on ``device``, in one copy per dtype."""
        diagnostics = {name: Diagnostic.of(value) for name, value in self.diagnostics.items()}
        tensors = {("sum", name): value for name, value in self.sums.items()}
        for name, diagnostic in diagnostics.items():
            if isinstance(diagnostic.values, Tensor):
                tensors["diagnostic", name] = diagnostic.values
        copies = moved(tensors, device)
        return replace(
            self,
            sums={name: copies["sum", name] for name in self.sums},
            diagnostics={
                name: replace(
                    diagnostic, values=copies.get(("diagnostic", name), diagnostic.values)
                )
                for name, diagnostic in diagnostics.items()
            },
        )


@dataclass
class Server:
    """The server's state.

    Attributes:
        model: the model with the shared parameters.
        seeds: the cell's seed tree, without its secret streams (:data:`fedsim.seeds.SECRET`).
        tensors: further state that it keeps between rounds, by name.
        plan: the privacy plan; None without privacy.
        codes: after the last round: the released client codes by name, ``[clients, ...]``; empty if
            none are released.
        device: where its model and tensors are.
    """

    model: nn.Module
    seeds: Seeds
    tensors: Tensors = field(default_factory=dict)
    plan: PrivacyPlan | None = None
    codes: Tensors = field(default_factory=dict)
    device: torch.device = CPU

    def to(self, device: torch.device) -> Server:
        """Move the model and all tensors to ``device``; returns this server."""
        self.model.to(device)
        self.tensors = moved(self.tensors, device)
        self.codes = moved(self.codes, device)
        self.device = device
        return self

    def noise_std(self, release: str, clients: int) -> float:
        """Return the standard deviation of the noise in a release's sum; 0 without a plan.

        Args:
            release: the name of the release.
            clients: the number of clients, each of which adds noise under ``trust: silo``.
        """
        if self.plan is None:
            return 0.0
        return self.plan.noise_std_of_sum(release, clients)
