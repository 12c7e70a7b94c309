"""The clients of a cohort: the only access to their data, their random numbers and their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout, consecutive
from fedsim.device import CPU, moved, to_device
from fedsim.methods.messages import NUMBER_BYTES, DiagnosticLike, Message, RoundTrace, Step, Tensors
from fedsim.methods.parameters import rounded
from fedsim.methods.products import Chart
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.noise import fill_gaussian, fingerprint, gaussian
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.seeds import Purpose, Seeds

NUMBERS_AT_ONCE = 2**18
"""Numbers of noise that are drawn before they are added: they fit a processor's cache, and one
addition serves many clients.
"""


@dataclass(frozen=True)
class Noised:
    """The tensors of one release after the clients added their noise.

    Attributes:
        sent: sums over the members, as they leave the clients.
        kept: per-client tensors ``[members, ...]``, as they stay with the clients.
    """

    sent: Tensors
    kept: Tensors


class Pooled(NamedTuple):
    """All members' rows one after another, x ``[N, d]`` and y ``[N]``, and the first row of each
    member.
    """

    x: Tensor
    y: Tensor
    starts: tuple[int, ...]

    def numbers(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Each member's row numbers (on the CPU) as row numbers of the pool."""
        return [chosen + start for chosen, start in zip(rows, self.starts, strict=True)]


@dataclass
class Clients:
    """The clients of one cohort: their data and their private state.

    Attributes:
        members: client numbers, ascending.
        x, y: each client's rows.
        seeds: the cell's seed tree.
        plan: the cell's privacy plan; None for an algorithm that is not private.
        model: holds one slice of every per-client parameter for each member.
        groups: if the unit is a group: the number of each row's group within its client, ascending
            from 0, on the CPU.
        state: further private tensors that an algorithm keeps between rounds: counters, or
            ``[members, ...]``.
        ran: the record of this round.
        steps: numbers of the steps of this round, each for one draw of noise; None: any.
        device: of the tensors; random numbers and row numbers are made on the CPU.
    """

    members: tuple[int, ...]
    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]
    seeds: Seeds
    plan: PrivacyPlan | None
    model: nn.Module
    groups: tuple[Tensor, ...] | None = None
    state: Tensors = field(default_factory=dict)
    ran: RoundTrace = field(default_factory=RoundTrace)
    steps: range | None = None
    device: torch.device = CPU
    _seen: tuple[Chart, Clients] | None = field(default=None, init=False)

    def in_coordinates(self, coordinates: Chart | None) -> Clients:
        """The same clients with their rows in ``coordinates``, made once for all rounds; themselves
        where there are none.
        """
        if coordinates is None:
            return self
        if self._seen is None or self._seen[0] != coordinates:
            self._seen = coordinates, replace(self, x=tuple(map(coordinates.of_rows, self.x)))
        return self._seen[1]

    @cached_property
    def pooled(self) -> Pooled:
        """The members' rows, joined once."""
        starts = tuple(accumulate((len(x) for x in self.x[:-1]), initial=0))
        return Pooled(torch.cat(self.x), torch.cat(self.y), starts)

    def only(self, positions: Sequence[int]) -> Clients:
        """The members at ``positions``, with copies of their state."""
        index = to_device(torch.tensor(positions, dtype=torch.long), self.device)
        chosen = replace(
            self,
            members=tuple(self.members[i] for i in positions),
            x=tuple(self.x[i] for i in positions),
            y=tuple(self.y[i] for i in positions),
            groups=self.groups and tuple(self.groups[i] for i in positions),
            state={
                name: value[index] if value.dim() else value.clone()
                for name, value in self.state.items()
            },
        )
        chosen.pooled = self.pooled._replace(starts=tuple(self.pooled.starts[i] for i in positions))
        return chosen

    def batch(
        self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Batch:
        """The batch of each member's ``rows`` (int64, on the CPU), with standard normal draws from
        each client's own stream.
        """
        drawn = self.drawn(rows, round_, shapes)
        index = to_device(torch.cat(self.pooled.numbers(rows)), self.device)
        position = torch.from_numpy(
            np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows])
        )
        return Batch(
            self.pooled.x.index_select(0, index),
            self.pooled.y.index_select(0, index),
            {
                name: to_device(torch.cat([draws[name] for draws in drawn]), self.device)
                for name in shapes
            },
            Layout.on(self.device, position, len(self.members)),
            self._groups_of(rows),
        )

    def batches(
        self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Batch]:
        """As :meth:`batch`, a batch of its own for each member."""
        drawn = self.drawn(rows, round_, shapes)
        draws = moved(
            {(i, name): own[name] for i, own in enumerate(drawn) for name in shapes}, self.device
        )
        index = moved(dict(enumerate(rows)), self.device)
        return [
            Batch(
                x.index_select(0, index[i]),
                y.index_select(0, index[i]),
                {name: draws[i, name] for name in shapes},
                Layout(torch.zeros_like(index[i]), 1, known=torch.zeros_like(rows[i])),
                None
                if self.groups is None
                else consecutive(self.groups[i][rows[i]], self.pooled.x),
            )
            for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))
        ]

    def _groups_of(self, rows: Sequence[Tensor]) -> Layout | None:
        """The groups of the members' ``rows`` together; None if the unit is not a group."""
        if self.groups is None:
            return None
        starts = accumulate(map(self.units, range(len(self.groups) - 1)), initial=0)
        return consecutive(
            torch.cat(
                [
                    own[chosen] + start
                    for own, chosen, start in zip(self.groups, rows, starts, strict=True)
                ]
            ),
            self.pooled.x,
        )

    @cached_property
    def all_groups(self) -> Layout | None:
        """The groups of all rows; None if the unit is not a group."""
        return self._groups_of([torch.arange(len(x)) for x in self.x])

    @cached_property
    def layout(self) -> Layout:
        """Which member each row of all members belongs to."""
        owner = torch.repeat_interleave(
            torch.arange(len(self.members)), torch.tensor([len(x) for x in self.x])
        )
        return Layout.on(self.device, owner, len(self.members))

    def drawn(
        self, rows: Sequence[Tensor], round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> list[Tensors]:
        """The :meth:`draws` of a batch: each member's for its ``rows``."""
        return [
            self.draws(client, len(chosen), round_, shapes)
            for client, chosen in zip(self.members, rows, strict=True)
        ]

    def draws(
        self, client: int, rows: int, round_: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Tensors:
        """Standard normal draws ``[rows, ...]`` by name, for the batch of one member; on the
        CPU.
        """
        stream = self.seeds.keystream(Purpose.LATENT, round_, client)
        return gaussian({name: (rows, *shape) for name, shape in shapes.items()}, 1.0, stream).parts

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """Each member's Poisson sample: with probability ``client_rate`` the client takes part,
        then each unit with ``rate``.

        A unit is a row, or a group with all its rows.
        """
        sampled = []
        for position, client in enumerate(self.members):
            drawn = self.seeds.keystream(Purpose.SAMPLING, round_, client).uniform(
                1 + self.units(position)
            )
            units = (drawn[0] < client_rate) & (drawn[1:] < rate)
            sampled.append(
                self._chosen(self.rows_of(position, torch.from_numpy(np.flatnonzero(units))))
            )
        return sampled

    def units(self, position: int) -> int:
        """The number of units of the member at ``position``: rows, or groups."""
        if self.groups is None:
            return len(self.x[position])
        own = self.groups[position]
        if len(own):
            return int(own[-1]) + 1
        return 0

    def rows_of(self, position: int, units: Tensor) -> Tensor:
        """The rows of a member's ``units``, both int64 and ascending."""
        if self.groups is None:
            return units
        return torch.isin(self.groups[position], units).nonzero()[:, 0]

    def minibatches(self, round_: int, steps: int, size: int) -> list[Tensor]:
        """Row numbers ``[steps, size]`` of each member, drawn with replacement; every member must
        have a row.
        """
        streams = (self.seeds.keystream(Purpose.LOCAL, round_, client) for client in self.members)
        drawn = (
            stream.integers(len(x), (steps, size))
            for stream, x in zip(streams, self.x, strict=True)
        )
        return [self._chosen(torch.from_numpy(rows)) for rows in drawn]

    def _chosen(self, rows: Tensor) -> Tensor:
        self.ran.sampled += fingerprint({"rows": rows})
        return rows

    def add_noise(
        self, release: Release, round_: int, sent: Tensors, kept: Tensors | None = None
    ) -> Noised:
        """Add the clients' noise, and count the step for the ledger; all noise of clients is drawn
        here.

        Under ``trust: silo`` every member adds the full noise to the sums ``sent``; under ``trust:
        aggregate`` the server adds it once. Per-client tensors ``kept`` ``[members, ...]`` get the
        client's noise in any case. One unit must change ``sent`` and ``kept`` together by at most
        the plan's sensitivity. Without a plan no noise is added. ``round_`` is the round, or of
        several steps a round the number of the step over all rounds. Sums in float64 are rounded
        once noise is added.

        Raises:
            ValueError: the step is not in the round, or its noise was drawn before: two sums with
                the same noise reveal their difference.
        """
        kept = kept or {}
        if self.plan is None:
            return Noised(sent, kept)
        if (self.steps is not None and round_ not in self.steps) or any(
            step.number == round_ for step in self.ran.steps
        ):
            if self.steps is None:
                which = ""
            else:
                which = f" (steps {self.steps.start} .. {self.steps.stop - 1})"
            raise ValueError(
                f"step {round_} is not in the round{which}, or its noise was drawn before; "
                "number a round's steps from round_.stream on"
            )
        if self.plan.trust == "silo":
            own = sent
        else:
            own = {}
        total = torch.zeros(sum(value.numel() for value in own.values()))
        noised = {name: torch.empty_like(value) for name, value in kept.items()}
        width = len(total) + sum(math.prod(value.shape[1:]) for value in kept.values())
        std = self.plan.noise_std(release.name)
        block = max(1, NUMBERS_AT_ONCE // max(1, width))
        for start in range(0, len(self.members) if own or kept else 0, block):
            members = self.members[start : start + block]
            draws = torch.empty(len(members), width)
            for client, draw in zip(members, draws.numpy(), strict=True):
                self.ran.noise += fill_gaussian(
                    draw, std, self.seeds.keystream(Purpose.NOISE, round_, client)
                )
            for draw in draws[:, : len(total)] if own else ():
                total += draw
            at = 0
            own_draws = to_device(draws[:, len(total) :], self.device)
            for name, value in kept.items():
                held = value[start : start + block]
                at, begin = at + held[0].numel(), at
                torch.add(
                    held,
                    own_draws[:, begin:at].view(held.shape),
                    out=noised[name][start : start + block],
                )
        if own or kept:
            multiplier = std / self.plan.sensitivity
        else:
            multiplier = math.inf
        needs_server_noise = bool(sent) and not own
        self.ran.steps.append(
            Step(
                Mechanism(multiplier, release.sample_rate, 1, release.name),
                round_,
                self.members,
                needs_server_noise,
            )
        )
        parts = torch.split(
            to_device(total, self.device), [value.numel() for value in own.values()]
        )
        added = {
            name: value + noise.view(value.shape)
            for (name, value), noise in zip(own.items(), parts, strict=True)
        }
        return Noised(sent | rounded(added), noised)

    def send(
        self,
        sums: Tensors,
        diagnostics: Mapping[str, DiagnosticLike] | None = None,
        uplink_bytes: int | None = None,
        downlink_bytes: int | None = None,
    ) -> Message:
        """The cohort's message: sums over the members, as :meth:`add_noise` returned them, and
        diagnostics, which are not private.

        Bytes are what all members together would send over a network, and receive; None: tensors of
        these shapes from every member, and the broadcast for every one.
        """
        weight = len(self.members) * NUMBER_BYTES * sum(value.numel() for value in sums.values())
        if uplink_bytes is None:
            sent = weight
        else:
            sent = uplink_bytes
        return Message(
            sums=sums,
            uplink_bytes=sent,
            downlink_bytes=downlink_bytes,
            diagnostics=diagnostics or {},
        )
