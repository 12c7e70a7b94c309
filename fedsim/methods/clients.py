"""The clients of a cohort: the door to their data, to their random numbers and to their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.methods.messages import Step, Tensors
from fedsim.privacy.noise import fill_gaussian
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.seeds import Purpose, Seeds

BLOCK = 2**18
"""Numbers of noise that are drawn before they are added: few enough for a processor's cache, enough for clients to share an addition."""


@dataclass(frozen=True)
class Noised:
    """What clients' noise made of one release.

    Attributes:
        sent: sums over the members, as they leave the clients.
        kept: per-client tensors ``[members, ...]``, as they stay with the clients.
        fingerprint: of the noise that was drawn.
    """

    sent: Tensors
    kept: Tensors
    fingerprint: int


@dataclass
class Clients:
    """The clients of one cohort: their data and their private state.

    Attributes:
        members: client numbers, ascending.
        x, y: each client's rows.
        seeds: the cell's seed tree.
        plan: the cell's privacy plan; None for an algorithm that is not private.
        model: holds one slice of every per-client parameter for each member.
        state: further private tensors that an algorithm keeps between rounds, ``[members, ...]`` each.
        ran: the steps of mechanisms since they were last counted.
    """

    members: tuple[int, ...]
    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    seeds: Seeds
    plan: PrivacyPlan | None
    model: nn.Module
    state: Tensors = field(default_factory=dict)
    ran: list[Step] = field(default_factory=list)

    def batch(self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]) -> Batch:
        """The batch of each member's ``rows`` (int64 indices), with standard normal draws from each client's own stream."""
        parts = self.batches(rows, round_, shapes)
        position = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows]))
        return Batch(
            torch.cat([part.x for part in parts]),
            torch.cat([part.y for part in parts]),
            {name: torch.cat([part.draws[name] for part in parts]) for name in shapes},
            Layout(position, len(self.members)),
        )

    def batches(self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]) -> list[Batch]:
        """As :meth:`batch`, a batch of its own for each member."""
        made = []
        for client, x, y, chosen in zip(self.members, self.x, self.y, rows, strict=True):
            draws = self.draws(client, len(chosen), round_, shapes)
            made.append(Batch(x.index_select(0, chosen), y.index_select(0, chosen), draws, Layout(torch.zeros_like(chosen), 1)))
        return made

    def draws(self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
        """Standard normal draws by name, ``[rows, ...]`` each, for the batch of one member."""
        stream = self.seeds.torch(Purpose.LATENT, round_, client)
        return {name: torch.randn(rows, *shape, generator=stream) for name, shape in shapes.items()}

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """Each member's Poisson sample: with probability ``client_rate`` the client takes part, then each row with ``rate``."""
        sampled = []
        for client, x in zip(self.members, self.x, strict=True):
            stream = self.seeds.numpy(Purpose.SAMPLING, round_, client)
            takes_part = stream.random() < client_rate
            chosen = np.flatnonzero(stream.random(len(x)) < rate) if takes_part else np.empty(0, np.int64)
            sampled.append(torch.from_numpy(chosen))
        return sampled

    def add_noise(self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None) -> Noised:
        """Add the noise that is the clients' own, and count the step for the ledger; all noise of clients is drawn here.

        Under ``trust: silo`` every member adds the full noise to what it sends; under ``trust: aggregate`` the server does that once.
        What stays with a client is noised by the client in any case. What one unit adds to ``sent`` and ``kept`` together must be
        within the plan's sensitivity. Without a plan nothing is noised.

        Args:
            release: the mechanism that runs.
            round_: the round; where a round holds several steps, the number of the step over all rounds.
            sent: sums over the members.
            kept: per-client tensors ``[members, ...]``.
        """
        kept = kept or {}
        if self.plan is None:
            return Noised(sent, kept, 0)
        own = sent if self.plan.trust == "silo" else {}
        total = torch.zeros(sum(value.numel() for value in own.values()))
        noised = {name: torch.empty_like(value) for name, value in kept.items()}
        width = len(total) + sum(value[0].numel() for value in kept.values())
        std, drawn, block = self.plan.noise_std(release.name), 0, max(1, BLOCK // max(1, width))
        for start in range(0, len(self.members) if own or kept else 0, block):
            members = self.members[start : start + block]
            draws = torch.empty(len(members), width)
            for client, draw in zip(members, draws.numpy(), strict=True):
                drawn += fill_gaussian(draw, std, self.seeds.noise(round_, client))
            for draw in draws[:, : len(total)] if own else ():
                total += draw
            at = len(total)
            for name, value in kept.items():
                held = value[start : start + block]
                at, begin = at + held[0].numel(), at
                torch.add(held, draws[:, begin:at].view(held.shape), out=noised[name][start : start + block])
        multiplier = std / self.plan.sensitivity if own or kept else math.inf
        self.ran.append(Step(release.name, round_, self.members, release.sample_rate, multiplier, bare=bool(sent) and not own))
        parts = torch.split(total, [value.numel() for value in own.values()])
        added = {name: value + noise.view(value.shape) for (name, value), noise in zip(own.items(), parts, strict=True)}
        return Noised(sent | added, noised, drawn)
