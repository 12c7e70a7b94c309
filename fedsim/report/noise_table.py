"""What noise each statistic and gradient of a prepared grid gets, in units of its signal: what an epsilon buys, before a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.json_lines import dump
from fedsim.methods.local_training import LocalDPSGD, LocalTraining
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.planning.prepare import Prepared
from fedsim.planning.rehearsal import first_rounds, made_up_cohort
from fedsim.privacy.plan import PrivacyPlan, Release
from fedsim.report.plan_table import public_rows_of
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial
from fedsim.words import number, print_line, wide_console

ROWS_A_CLIENT = 2
"""Rows of every client in the rounds that show the shapes of what is sent."""
STATISTIC_NAMES = {
    "sum": "mean of all rows",
    "count": "number of rows",
    "second": "second moment",
    "bins": "histogram of distances",
    "features": "class mean features",
    "counts": "class counts",
}
"""What parts of a statistic are called whose own names do not say it."""
_UNITS = {"sum": "a row's norm", "bins": "the number of rows", "site_second": "the radius squared"}
"""What the noise of those is measured in that are no means of rows within the radius."""


@dataclass(frozen=True)
class ReleaseParts:
    """What an algorithm releases, as a first round on made-up rows shows it.

    Attributes:
        shapes: by release, the shape of each tensor of a message.
        weights: by release, each statistic's weight in a unit's joint norm; none for gradients and updates.
        parameters: how many parameters a client trains.
        local: whether the noise is in every client's own steps.
        updates: whether what is clipped is a client's update.
        clips_clients: whether what is clipped is all that a client sends.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    weights: Mapping[str, Mapping[str, float]]
    parameters: int
    local: bool
    updates: bool
    clips_clients: bool


class _Shapes(LocalPool):
    """Clients that note the shapes of what they send."""

    def __init__(self, cohort: Cohort) -> None:
        super().__init__([cohort])
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        messages = super().round(round_, broadcast)
        self.shapes[round_.release.name] = {name: tuple(value.shape) for name, value in messages[0].sums.items()}
        return messages


def parts_of(trial: Trial) -> ReleaseParts:
    """The parts of a cell's releases: the first round of each, through the code that trains, on a few made-up rows a client."""
    task, cell = trial.task, trial.cell
    with torch.random.fork_rng(devices=[]):
        cohort = made_up_cohort(cell.algorithm, cell.params, task, trial.plan, ROWS_A_CLIENT)
        algorithm, pool = cohort.algorithm, _Shapes(cohort)
        to_the_end(train(algorithm, pool, trial.plan, Seeds(0), schedule=first_rounds(algorithm)))
    in_local_steps = isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps
    return ReleaseParts(
        pool.shapes,
        {phase.release.name: dict(phase.weights) for phase in cohort.phases},
        sum(p.numel() for p in cohort.clients.model.parameters()),
        in_local_steps,
        isinstance(algorithm, LocalTraining) and not in_local_steps,
        algorithm.clips_clients(),
    )


@dataclass(frozen=True)
class Signal:
    """A part of a release with the noise that it gets.

    Attributes:
        name: what it is.
        noise: the noise's norm.
        of: what this is measured in: the largest norm that the noiseless part can have, in words.
        detail: the numbers behind it.
    """

    name: str
    noise: float
    of: str
    detail: str

    @property
    def words(self) -> str:
        """``class means: noise norm 0.3 of the radius at n = 12,000 (10 groups of 1,200 on average), 64 dimensions``."""
        return f"{self.name}: noise norm {number(self.noise, 2)} of {self.of} {self.detail}"


@dataclass(frozen=True)
class CellNoise:
    """The noise of one cell's plan.

    Attributes:
        trial: the cell.
        parts: of its algorithm.
    """

    trial: Trial
    parts: ReleaseParts

    @cached_property
    def _plan(self) -> PrivacyPlan:
        assert self.trial.plan is not None
        return self.trial.plan

    @property
    def _held(self) -> tuple[int, str]:
        """What the clip bounds one by one, of all clients together, and what it is called; also where a whole client is the unit."""
        groups = self.trial.train_groups
        return (self.trial.train_rows, "examples") if groups is None else (groups, "groups")

    def signals(self, release: Release) -> Iterator[Signal]:
        """Every part of a release."""
        weights = self.parts.weights.get(release.name, {})
        if not weights:
            yield self._gradient(release)
            return
        for name, shape in self.parts.shapes[release.name].items():
            yield self._statistic(release, name, shape, weights.get(name, 1.0))

    def _std(self, release: Release) -> float:
        """Of the noise on the sum over clients, a coordinate."""
        return self._plan.noise_std_of_sum(release.name, 1 if self.parts.local else self.trial.task.clients)

    def _statistic(self, release: Release, name: str, shape: tuple[int, ...], weight: float) -> Signal:
        rows, task, title = self.trial.units, self.trial.task, _title(name)
        size = math.prod(shape[1:])
        dim = self.trial.cell.params.get("project") or task.dim
        matrices = shape == (dim, dim) or (name == "class_second" and shape[0] % size == 0)
        groups = shape[0] // size if matrices else shape[0]
        held, std = rows / groups, self._std(release) / (self._plan.clip * weight)
        where = f"at n = {rows:,}" + (f" ({groups} groups of {held:,.0f} on average)" if groups > 1 else "")
        if matrices:
            # the spectral norm of a matrix of independent noise is about twice the root of its size
            return Signal(title, 2 * math.sqrt(size) * std / held, "the largest trace", f"in spectral norm, {where}, {size} dimensions")
        if size == 1:
            return Signal(title, std / held, "the count", where)
        return Signal(title, math.sqrt(size) * std / held, _UNITS.get(name, "the radius"), f"{where}, {size} dimensions")

    def _gradient(self, release: Release) -> Signal:
        (held, called), task, clip = self._held, self.trial.task, self._plan.clip
        size = sum(math.prod(shape) for shape in self.parts.shapes[release.name].values())
        if self.parts.local:
            own = held / task.clients
            size, units, of = self.parts.parameters, own * release.sample_rate, f"{called} of a client's {own:,.0f}"
        elif self.parts.updates or self.parts.clips_clients:
            units, of = task.clients * release.sample_rate, f"clients of {task.clients:,}"
        else:
            units, of = held * release.sample_rate, f"{called} of n = {held:,}"
        what = "sum of updates" if self.parts.updates else "sum of gradients"
        noise = self._std(release) * math.sqrt(size) / (clip * units)
        detail = f"(clip {number(clip)} × {units:,.0f} expected {of}), {size:,} parameters, in each of {release.steps} steps"
        return Signal(what, noise, "the largest possible sum", detail)


def _title(name: str) -> str:
    """Of a part of a statistic: a sum is released to be divided, so its noise is that of a mean."""
    return STATISTIC_NAMES.get(name) or name.replace("_sums", " means").replace("_second", " second moments").replace("_", " ")


def show_noise(prepared: Prepared, console: Console) -> None:
    """Print the noise of every cell, once for those that differ in seed or alpha alone."""
    table = Table(title=f"{prepared.grid.name}: the noise in units of the signal", title_justify="left", show_edge=False)
    for name in ("algorithm", "data", "clients", "ε", "σ", "release", "noise"):
        table.add_column(name, justify="right" if name in ("clients", "ε", "σ") else "left", no_wrap=True)
    shown: set[tuple[Any, ...]] = set()
    known: dict[tuple[Any, ...], ReleaseParts] = {}
    without = dict.fromkeys(t.cell.label for t in prepared.trials if t.plan is None or math.isinf(t.plan.epsilon_target))
    for trial in prepared.trials:
        plan, cell = trial.plan, trial.cell
        line = (cell.label, cell.dataset.display, cell.clients, cell.epsilon, trial.train_rows, dump(cell.params))
        if plan is None or math.isinf(plan.epsilon_target) or line in shown:
            continue
        shown.add(line)
        key = (cell.algorithm, dump(cell.params), trial.task)
        if key not in known:
            known[key] = parts_of(trial)
        noised, first = CellNoise(trial, known[key]), True
        for release in plan.releases:
            for signal in noised.signals(release):
                place = (
                    (cell.label, cell.dataset.display, str(cell.clients), number(cell.epsilon), f"{plan.sigma:.4g}") if first else ("",) * 5
                )
                table.add_row(*map(Text, (*place, release.name, signal.words)))
                first = False
    wide_console(console, 240).print(table)
    for public in public_rows_of(prepared):
        print_line(console, public)
    if without:
        print_line(console, f"without noise: {', '.join(without)} (not private, or at ε = ∞)")
    signal_words = (
        "the largest that it can be, which real gradients and means are below; n is of all clients together; nothing was run on the data"
    )
    console.print(
        f"Norms are expected ones of the Gaussian noise after division by public or expected counts; the signal is {signal_words}.",
        highlight=False,
    )
