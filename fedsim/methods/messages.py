"""What travels between server and clients, what everybody may know, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from fedsim.privacy.ledger import Entry
from fedsim.privacy.plan import PrivacyPlan, Release, Trust, Unit
from fedsim.seeds import Seeds

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """What everybody may know about a cell: shapes, the number of clients, and whom privacy protects from whom."""

    dim: int
    classes: int
    clients: int
    unit: Unit = "example"
    trust: Trust = "aggregate"


@dataclass(frozen=True)
class Step:
    """One step of a mechanism on a cohort, as :meth:`Clients.add_noise` ran it.

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


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a cohort sends after a round: the sum over its clients, never one client's part under ``trust: aggregate``.

    Attributes:
        sums: tensors by name; what only one cohort sends under a name goes on as it is.
        sampled: fingerprint of the rows that each client sampled.
        noise: fingerprint of the noise that the clients drew.
        uplink_bytes: what the clients would have sent over a network, all of them together; where it is private who takes part, of
            those who do not, too.
        diagnostics: not private, for people who may see the data: values per example or per client by name, averaged over all cohorts;
            ``gradient_norm`` is told by its quantiles, and ``generator_features``, the mean kernel features of what each client generates,
            become ``cross_client_mmd``.
        steps: the steps of mechanisms that ran; counted by the harness, whatever an algorithm gives here.
    """

    sums: Tensors
    sampled: int = 0
    noise: int = 0
    uplink_bytes: int = 0
    diagnostics: Mapping[str, list[Any]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


@dataclass
class Server:
    """The server's state.

    Attributes:
        model: with the shared parameters.
        seeds: the cell's seed tree.
        tensors: by name, whatever else lives on between rounds.
        plan: the privacy plan, None without privacy.
        codes: after the last round the released client codes by name, ``[clients, ...]``; empty where none are released.
    """

    model: nn.Module
    seeds: Seeds
    tensors: Tensors = field(default_factory=dict)
    plan: PrivacyPlan | None = None
    codes: Tensors = field(default_factory=dict)

    def noise_std(self, release: str, clients: int) -> float:
        """Standard deviation of the noise that a release's sum carries: every silo's own, or the one of the aggregate."""
        if self.plan is None:
            return 0.0
        return self.plan.noise_std(release) * math.sqrt(clients if self.plan.trust == "silo" else 1)


class Pool(Protocol):
    """All clients of a cell, however they are packed onto actors."""

    def round(self, round_: int, release: Release, broadcast: Tensors) -> list[Message]:
        """Let every cohort compute; messages in client order."""

    def released(self, names: Sequence[str]) -> Tensors:
        """Per-client tensors that the plan protects, ``[clients, ...]``, in client order."""

    def state(self) -> Tensors:
        """All private client state, for a checkpoint."""

    def load_state(self, tensors: Tensors) -> None:
        """Take up a checkpoint's client state."""
