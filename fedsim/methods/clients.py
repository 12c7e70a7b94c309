"""Defines :class:`Clients`, the clients of a cohort, which are computed together.

An algorithm gets a :class:`Clients` in every round. Only through this object can it read and sample
the clients' examples, draw their random numbers and add their noise. It then returns a message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.batch import Batch, Layout, consecutive
from fedsim.device import CPU, moved, to_device
from fedsim.methods.member_rows import MemberRows, PooledRows
from fedsim.methods.messages import (
    NUMBER_BYTES,
    DiagnosticLike,
    Message,
    RoundTrace,
    Shapes,
    Step,
    Tensors,
)
from fedsim.methods.parameters import rounded
from fedsim.methods.products import Chart
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.noise import fill_gaussian, fingerprint, gaussian
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.privacy.statistics.outer_products import BLOCK
from fedsim.seeds import Purpose, Seeds

Item = TypeVar("Item")
NUMBERS_AT_ONCE = 2**18
"""The number of noise values that are drawn before they are added.

This many values fit a processor's cache. They are the noise of a block of clients, or of one client
if it needs more.
"""


@dataclass(frozen=True)
class Noised:
    """The tensors of one release after the clients have added their noise.

    Attributes:
        sent: sums over the members, as they leave the clients.
        kept: per-client tensors ``[members, ...]``, as they stay with the clients.
    """

    sent: Tensors
    kept: Tensors


class Pooled(NamedTuple):
    """The examples of all members, one member after another.

    Attributes:
        x: embeddings ``[N, d]``: a tensor, or rows that are copied when they are indexed.
        y: labels ``[N]``.
        starts: the position of each member's first example.
    """

    x: Tensor | PooledRows
    y: Tensor
    starts: tuple[int, ...]

    def numbers(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Turn each member's row numbers (on the CPU) into row numbers of the pool."""
        return [chosen + start for chosen, start in zip(rows, self.starts, strict=True)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors joined along their first dimension.

    Nothing is copied if the tensors already follow each other in memory.
    """
    first = parts[0]
    memory = first.untyped_storage().data_ptr()
    offset = first.storage_offset()
    for part in parts:
        follows = part.untyped_storage().data_ptr() == memory and part.storage_offset() == offset
        if not (follows and part.is_contiguous()):
            return torch.cat(list(parts))
        offset += part.numel()
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


@dataclass
class Clients:
    """The clients of one cohort: their data and their private state.

    In this class a *unit* is an example, or a group with all its examples: :meth:`poisson` samples
    units. If the budget protects whole clients, the units here are still examples.

    Attributes:
        members: the numbers of the clients, ascending.
        x: each member's embeddings ``[n, d]``. On the CPU every look-up copies them from the data
            set, so keep the result, and use ``len(y)`` for their number.
        y: each member's labels ``[n]``.
        seeds: the cell's seed tree.
        plan: the cell's privacy plan; None for an algorithm that is not private.
        model: a model that holds one slice of every per-client parameter for each member.
        groups: if the unit is a group: the number of each example's group within its client,
            ascending from 0, on the CPU; else None.
        state: further private tensors that an algorithm keeps between rounds: counters without a
            dimension, or ``[members, ...]``.
        ran: the record of this round.
        steps: the numbers of the steps that this round may run, each of which draws noise once.
            None allows any number.
        device: where the tensors are. Random numbers and row numbers are made on the CPU.
    """

    members: tuple[int, ...]
    x: Sequence[Tensor]
    y: tuple[Tensor, ...]
    seeds: Seeds
    plan: PrivacyPlan | None
    model: nn.Module
    groups: tuple[Tensor, ...] | None = None
    state: Tensors = field(default_factory=dict)
    ran: RoundTrace = field(default_factory=RoundTrace)
    steps: range | None = None
    device: torch.device = CPU
    _converted: tuple[Chart, Clients] | None = field(
        default=None,
        init=False,
    )

    def in_coordinates(self, coordinates: Chart | None) -> Clients:
        """Return the clients with embeddings in ``coordinates``; with None, this object itself.

        The embeddings are converted once for all rounds. Use the result for batches only: its
        ``ran`` and ``steps`` remain those of the round that converted it.
        """
        if coordinates is None:
            return self
        if self._converted is None or self._converted[0] != coordinates:
            # The first row, if there is any, tells the number of coordinates.
            first_row = coordinates.of_rows(self.pooled.x[:1])
            converted = first_row.new_empty(len(self.pooled.y), *first_row.shape[1:])
            members_x = torch.split(converted, [len(y) for y in self.y])
            for member_x, start in zip(members_x, self.pooled.starts, strict=True):
                for first in range(0, len(member_x), BLOCK):
                    block = member_x[first : first + BLOCK]
                    rows = slice(start + first, start + first + len(block))
                    block.copy_(coordinates.of_rows(self.pooled.x[rows]))
            self._converted = (coordinates, replace(self, x=members_x))
        return self._converted[1]

    @cached_property
    def pooled(self) -> Pooled:
        """The examples of all members, joined once."""
        starts = tuple(accumulate(map(len, self.y[:-1]), initial=0))
        if isinstance(self.x, MemberRows):
            rows = PooledRows(self.x.values, joined(self.x.numbers))
            return Pooled(rows, joined(self.y), starts)
        return Pooled(joined(self.x), joined(self.y), starts)

    def only(self, positions: Sequence[int]) -> Clients:
        """Return the members at ``positions``, with copies of their state.

        Where embeddings are tensors, :attr:`pooled` still holds the examples of all members. Use
        it only with :meth:`Pooled.numbers`.
        """
        index = to_device(
            torch.tensor(positions, dtype=torch.long),
            self.device,
        )
        state = {}
        for name, value in self.state.items():
            if value.dim():
                state[name] = value[index]
            else:
                state[name] = value.clone()

        def pick(values: Sequence[Item]) -> tuple[Item, ...]:
            return tuple(values[i] for i in positions)

        chosen = replace(
            self,
            members=pick(self.members),
            y=pick(self.y),
            groups=self.groups and pick(self.groups),
            state=state,
        )
        if isinstance(self.x, MemberRows):
            chosen.x = MemberRows(self.x.values, pick(self.x.numbers))
        else:
            chosen.x = pick(self.x)
            # The pool of all members serves them too, without another copy.
            chosen.pooled = self.pooled._replace(starts=pick(self.pooled.starts))
        return chosen

    def batch(
        self,
        rows: Sequence[Tensor],
        round_: int,
        shapes: Shapes,
    ) -> Batch:
        """Return one batch of the chosen examples of all members.

        Args:
            rows: each member's row numbers, int64, on the CPU.
            round_: the number of the step, which selects the random numbers.
            shapes: by name, the shape of one example's standard normal draws. They come from each
                client's own stream.
        """
        drawn = self.drawn(rows, round_, shapes)
        draws = {
            name: to_device(torch.cat([client_draws[name] for client_draws in drawn]), self.device)
            for name in shapes
        }
        index = to_device(
            torch.cat(self.pooled.numbers(rows)),
            self.device,
        )
        return Batch(
            self.pooled.x.index_select(0, index),
            self.pooled.y.index_select(0, index),
            draws,
            self._layout_of(rows),
            self._groups_of(rows),
        )

    def batches(
        self,
        rows: Sequence[Tensor],
        round_: int,
        shapes: Shapes,
    ) -> list[Batch]:
        """Return one batch per member; the arguments are those of :meth:`batch`."""
        drawn = self.drawn(rows, round_, shapes)
        draws = moved(
            {(i, name): drawn[i][name] for i in range(len(drawn)) for name in shapes},
            self.device,
        )
        index = moved(dict(enumerate(rows)), self.device)
        batches = []
        for i, chosen in enumerate(rows):
            groups = None
            if self.groups is not None:
                groups = consecutive(
                    self.groups[i][chosen],
                    self.pooled.y,
                )
            batches.append(
                Batch(
                    self.pooled.x.index_select(0, index[i] + self.pooled.starts[i]),
                    self.y[i].index_select(0, index[i]),
                    {name: draws[i, name] for name in shapes},
                    Layout(torch.zeros_like(index[i]), 1, known=torch.zeros_like(chosen)),
                    groups,
                )
            )
        return batches

    def _groups_of(self, rows: Sequence[Tensor]) -> Layout | None:
        """Return the groups of the members' ``rows``; None if the unit is not a group."""
        if self.groups is None:
            return None
        start = 0
        numbers = []
        for position, chosen in enumerate(rows):
            numbers.append(self.groups[position][chosen] + start)
            start += self.units(position)
        return consecutive(torch.cat(numbers), self.pooled.y)

    @cached_property
    def all_groups(self) -> Layout | None:
        """The groups of all examples; None if the unit is not a group."""
        return self._groups_of([torch.arange(len(y)) for y in self.y])

    @cached_property
    def layout(self) -> Layout:
        """The member to which each example of :attr:`pooled` belongs."""
        return self._layout_of(self.y)

    def _layout_of(self, rows: Sequence[Tensor]) -> Layout:
        """Return the member to which each of the joined ``rows`` of all members belongs."""
        sizes = [len(chosen) for chosen in rows]
        position = torch.from_numpy(np.repeat(np.arange(len(rows)), sizes))
        return Layout.on(self.device, position, len(self.members))

    def drawn(
        self,
        rows: Sequence[Tensor],
        round_: int,
        shapes: Shapes,
    ) -> list[Tensors]:
        """Return :meth:`draws` for each member's part of a batch."""
        return [
            self.draws(client, len(chosen), round_, shapes)
            for client, chosen in zip(self.members, rows, strict=True)
        ]

    def draws(
        self,
        client: int,
        rows: int,
        round_: int,
        shapes: Shapes,
    ) -> Tensors:
        """Return standard normal draws ``[rows, ...]`` by name, on the CPU.

        Args:
            client: the member whose stream they come from.
            rows: the number of its examples in the batch.
            round_: the number of the step.
            shapes: the shape of one example's draws, by name.
        """
        stream = self.seeds.keystream(Purpose.LATENT, round_, client)
        batch_shapes = {name: (rows, *shape) for name, shape in shapes.items()}
        return gaussian(batch_shapes, 1.0, stream).parts

    def poisson(self, round_: int, rate: float, client_rate: float = 1.0) -> list[Tensor]:
        """Return each member's Poisson sample: row numbers, int64 and ascending, on the CPU.

        A client takes part with probability ``client_rate``. Each of its units is then sampled with
        probability ``rate``, independently of all others. A ``client_rate`` below 1 amplifies
        privacy for ``unit: client`` only, since the units of one client take part together.
        """
        samples = []
        for position, client in enumerate(self.members):
            stream = self.seeds.keystream(Purpose.SAMPLING, round_, client)
            # The first number decides for the client, each further one for a unit.
            uniform = stream.uniform(1 + self.units(position))
            sampled = (uniform[0] < client_rate) & (uniform[1:] < rate)
            units = torch.from_numpy(np.flatnonzero(sampled))
            samples.append(self._record_sample(self.rows_of(position, units)))
        return samples

    def units(self, position: int) -> int:
        """Return the number of units (examples, or groups) of the member at ``position``."""
        if self.groups is None:
            return len(self.y[position])
        groups = self.groups[position]
        if len(groups):
            return int(groups[-1]) + 1
        return 0

    def rows_of(self, position: int, units: Tensor) -> Tensor:
        """Return the row numbers of a member's ``units``; both are int64 and ascending."""
        if self.groups is None:
            return units
        return torch.isin(self.groups[position], units).nonzero()[:, 0]

    def minibatches(self, round_: int, steps: int, size: int) -> list[Tensor]:
        """Return each member's row numbers ``[steps, size]``, drawn with replacement.

        Every member must have an example.
        """
        minibatches = []
        for client, y in zip(self.members, self.y, strict=True):
            stream = self.seeds.keystream(Purpose.LOCAL, round_, client)
            rows = torch.from_numpy(stream.integers(len(y), (steps, size)))
            minibatches.append(self._record_sample(rows))
        return minibatches

    def _record_sample(self, rows: Tensor) -> Tensor:
        """Add a sample to the round's record, and return it."""
        self.ran.sampled += fingerprint({"rows": rows})
        return rows

    def add_noise(
        self,
        release: Release,
        round_: int,
        sent: Tensors,
        kept: Tensors | None = None,
    ) -> Noised:
        """Add the clients' noise and count the step for the ledger.

        All noise of clients is drawn here. Under ``trust: silo`` every member adds the full noise
        to the sums ``sent``. Under ``trust: aggregate`` the server adds it once, later. Per-client
        tensors ``kept`` get their client's noise in any case. Without a plan nothing is added.

        One unit must change ``sent`` and ``kept`` together by at most the plan's sensitivity.

        Args:
            release: the mechanism.
            round_: the number of the step: ``round_.stream``, plus the step within a round that has
                several.
            sent: sums over the members.
            kept: per-client tensors ``[members, ...]``.

        Returns:
            Both with noise. Float64 is rounded to float32 once noise is added. Sums to which the
            server will add the noise are returned as they are.

        Raises:
            ValueError: the step is not in the round, or its noise was drawn before. Two sums with
                the same noise would reveal their difference.
        """
        kept = kept or {}
        if self.plan is None:
            return Noised(sent, kept)
        self._check_step(round_)
        sums = Tensors()  # the sums to which the clients add noise
        if self.plan.trust == "silo":
            sums = sent
        std = self.plan.noise_std(release.name)
        multiplier = math.inf  # if clients have no tensor to add noise to
        noised_kept = {}
        for name, value in kept.items():
            dtype = torch.float32 if value.dtype == torch.float64 else value.dtype
            noised_kept[name] = torch.empty_like(value, dtype=dtype)
        sizes = [value.numel() for value in sums.values()]
        total = torch.zeros(sum(sizes))
        if sums or kept:
            multiplier = std / self.plan.sensitivity
            self._draw_noise(round_, std, total, kept, noised_kept)
        mechanism = Mechanism(multiplier, release.sample_rate, 1, release.name)
        needs_server_noise = bool(sent) and not sums
        self.ran.steps.append(Step(mechanism, round_, self.members, needs_server_noise))
        noise = torch.split(to_device(total, self.device), sizes)
        noised_sums = {
            name: value + noise_part.view(value.shape)
            for (name, value), noise_part in zip(sums.items(), noise, strict=True)
        }
        return Noised(sent | rounded(noised_sums), noised_kept)

    def _check_step(self, step: int) -> None:
        """Refuse a step that is not in the round, or whose noise was drawn before."""
        outside = self.steps is not None and step not in self.steps
        if not outside and all(earlier.number != step for earlier in self.ran.steps):
            return
        allowed = ""
        if self.steps is not None:
            allowed = f" (steps {self.steps.start} .. {self.steps.stop - 1})"
        raise ValueError(
            f"step {step} is not in the round{allowed}, or its noise was drawn before; "
            "number a round's steps from round_.stream on"
        )

    def _draw_noise(
        self,
        step: int,
        std: float,
        total: Tensor,
        kept: Tensors,
        noised_kept: Tensors,
    ) -> None:
        """Draw the noise of all members for one step.

        Args:
            step: the number of the step.
            std: the standard deviation of each member's noise.
            total: gains the sum of the members' noise on the sums, flat, on the CPU.
            kept: per-client tensors ``[members, ...]``.
            noised_kept: receives ``kept`` plus noise.
        """
        widths = [math.prod(value.shape[1:]) for value in kept.values()]
        for positions, draws in self._noise_blocks(step, std, len(total) + sum(widths)):
            if len(total):
                for client_noise in draws[:, : len(total)]:
                    total += client_noise
            kept_draws = to_device(
                draws[:, len(total) :],
                self.device,
            )
            kept_noise = torch.split(kept_draws, widths, 1)
            for (name, value), noise in zip(kept.items(), kept_noise, strict=True):
                values = value[positions]
                out = noised_kept[name][positions]
                torch.add(values, noise.view(values.shape), out=out)

    def _noise_blocks(
        self,
        step: int,
        std: float,
        width: int,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``width`` numbers of noise per member, for a block of members at a time.

        Each item is the block's positions among the members, and its draws ``[block, width]`` on
        the CPU.
        """
        block = max(1, NUMBERS_AT_ONCE // max(1, width))
        for start in range(0, len(self.members), block):
            positions = slice(start, start + block)
            members = self.members[positions]
            draws = torch.empty(len(members), width)
            for client, out in zip(members, draws.numpy(), strict=True):
                stream = self.seeds.keystream(Purpose.NOISE, step, client)
                self.ran.noise += fill_gaussian(out, std, stream)
            yield positions, draws

    def send(
        self,
        sums: Tensors,
        diagnostics: Mapping[str, DiagnosticLike] | None = None,
        uplink_bytes: int | None = None,
        downlink_bytes: int | None = None,
    ) -> Message:
        """Return the cohort's message.

        Args:
            sums: sums over the members. In a private algorithm, sums that depend on data must come
                from :meth:`add_noise`.
            diagnostics: values per example or per client by name. They carry no noise, so they are
                not protected.
            uplink_bytes: bytes that all members together would send over a network; None: tensors
                of these shapes from every member.
            downlink_bytes: bytes that they would receive; None: the broadcast for every member.
        """
        if uplink_bytes is None:
            numbers = sum(value.numel() for value in sums.values())
            uplink_bytes = len(self.members) * NUMBER_BYTES * numbers
        return Message(
            sums=sums,
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
            diagnostics=diagnostics or {},
        )
