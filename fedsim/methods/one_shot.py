"""Algorithms that release statistics and choices: each is one mechanism, in whose round clients send clipped sums over rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.device import to_device
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Diagnostic, Message, Round, Server, Task, Tensors, Values
from fedsim.methods.per_example import crowds
from fedsim.methods.phase import Phase
from fedsim.models.layers import one_hot
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Release, Unit
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import OuterProduct, clipped_statistics, unit_weights

ROWS_SCORED = 1024
"""Rows whose scores are made at a time."""


@dataclass(frozen=True)
class Rows:
    """A cohort's rows: x ``[N, d]``, labels ``[N]``, and the number of each row's client among all clients ``[N]``."""

    x: Tensor
    y: Tensor
    client: Tensor

    @classmethod
    def of(cls, clients: Clients) -> Rows:
        """All rows of all members, in client order."""
        owner = torch.repeat_interleave(torch.tensor(clients.members), torch.tensor([len(x) for x in clients.x]))
        return cls(clients.pooled.x, clients.pooled.y, to_device(owner, clients.device))


@dataclass(frozen=True)
class Statistic:
    """What is released of all rows together: sums of outer products, by one Gaussian mechanism a step.

    Attributes:
        name: of the release, unique within an algorithm.
        share: of the budget in units of 1 / sigma^2, for all its steps together.
        weights: of the sums in an example's joint norm; their ratios count.
        products: (rows, broadcast): outer products of every row by name, as the weights name them; factors of norm at most 1,
            or the joint norm is clipped.
        receive: (server, sums, std): takes the noisy sums into ``server.tensors``; ``std`` is that of each one's noise, in its own units.
        steps: how often it is released.
    """

    name: str
    share: float
    weights: Mapping[str, float]
    products: Callable[[Rows, Tensors], Mapping[str, OuterProduct]]
    receive: Callable[[Server, Tensors, Mapping[str, float]], None]
    steps: int = 1


def statistic_phase(statistic: Statistic, clip: float, task: Task, broadcast: Callable[[Server], Tensors], *, main: bool = False) -> Phase:
    """The rounds in which a statistic is released.

    Args:
        statistic: what is released.
        clip: C, of an example's joint norm; the sums are scaled so that nothing is clipped unless factors are too large.
        task: the public facts.
        broadcast: as :class:`fedsim.methods.phase.Phase` has it.
        main: whether a report draws its rounds.
    """
    # many steps share what one would have, and a mechanism that takes a share of the budget has 1 / sqrt(share) times the noise
    release = Release(statistic.name, 1.0, statistic.steps, (statistic.share / statistic.steps) ** -0.5, main=main)
    weights, unit = unit_weights(statistic.weights), clip if math.isfinite(clip) else 1.0
    norms = Norms(clip, weights={name: unit * weight for name, weight in weights.items()})

    def at_clients(clients: Clients, round_: Round, received: Tensors) -> Message:
        products = statistic.products(Rows.of(clients), received)
        if products.keys() != weights.keys():
            raise ValueError(f"statistic '{statistic.name}' has the products {sorted(products)} and weights of {sorted(weights)}")
        sums, joint = clipped_statistics(products, norms, clients.all_groups)
        clipped = (joint > clip * (1 + 1e-6)).float()
        noised = clients.add_noise(round_.release, round_.stream, sums)
        return clients.send(noised.sent, {"gradient_norm": Diagnostic(joint, "quantiles"), "clipped_fraction": clipped})

    def at_server(server: Server, round_: Round, total: Tensors) -> Values:
        std = server.noise_std(release.name, task.clients) / unit
        sums = {name: value / norms.weight(name) for name, value in total.items()}
        statistic.receive(server, sums, {name: std / weight for name, weight in weights.items()})
        return {}

    return Phase(release, at_clients, at_server, broadcast, weights)


@dataclass(frozen=True)
class Choice:
    """Of every class one candidate, by one exponential mechanism a step (:class:`fedsim.privacy.plan.Release`).

    Attributes:
        name: of the release, unique within an algorithm.
        share: of the budget in units of 1 / sigma^2, for all its steps together.
        scores: (rows, broadcast): what each row gives to the candidates of its class ``[N, candidates]``, in [0, 1]: values outside are
            clipped, and what is not a number counts as 0. The rows of a group share 1 between them.
        receive: (server, chosen): takes the number of every class's candidate ``[C]`` into ``server.tensors``.
        steps: how often it is made.
    """

    name: str
    share: float
    scores: Callable[[Rows, Tensors], Tensor]
    receive: Callable[[Server, Tensor], None]
    steps: int = 1


def choice_phase(choice: Choice, clip: float, task: Task, broadcast: Callable[[Server], Tensors], *, main: bool = False) -> Phase:
    """The rounds in which a choice is made; arguments as of :func:`fedsim.methods.one_shot.statistic_phase`."""
    # epsilon_0^2 / 8-zCDP with epsilon_0 = 1 / noise: so much as a Gaussian mechanism of twice the noise
    noise = (choice.share / choice.steps) ** -0.5 / 2
    release = Release(choice.name, 1.0, choice.steps, noise, main=main, mechanism="exponential")
    unit = clip if math.isfinite(clip) else 1.0

    def at_clients(clients: Clients, round_: Round, received: Tensors) -> Message:
        rows, groups = Rows.of(clients), clients.all_groups
        weight = rows.x.new_full((len(rows.x),), unit, dtype=torch.double)
        if groups is not None:
            weight /= torch.bincount(groups.client, minlength=groups.clients)[groups.client]
        total: Tensor | float = 0.0
        for start in range(0, max(1, len(rows.x)), ROWS_SCORED):
            part = slice(start, start + ROWS_SCORED)
            some = Rows(rows.x[part], rows.y[part], rows.client[part])
            scores = choice.scores(some, received).double().nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
            # a row of a group is a part of a unit, and every row adds to its own class alone
            total = total + (one_hot(some.y, task.classes).double() * weight[part, None]).T @ scores
        assert isinstance(total, Tensor)
        return clients.send(clients.add_noise(round_.release, round_.stream, {"scores": total}).sent)

    def at_server(server: Server, round_: Round, chosen: Tensors) -> Values:
        choice.receive(server, chosen["scores"])
        return {}

    return Phase(release, at_clients, at_server, broadcast)


class OneShot(Algorithm):
    """Base class of an algorithm that releases statistics, and makes choices, and samples from what they say.

    A subclass supplies :meth:`statistics` and :meth:`generator`. A unit's statistics, an example's or the sum of a group's, are scaled to a
    joint norm of at most 1.
    """

    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    @abstractmethod
    def statistics(self) -> tuple[Statistic | Choice, ...]:
        """What is released, one after another; shares add up to 1."""

    def clip(self) -> float:
        """Statistics have joint norm at most 1."""
        return 1.0

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def broadcast(self, server: Server) -> Tensors:
        """Everything released so far."""
        return dict(server.tensors)

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Look at what made-up rows of one client add to the round's statistic as they become more.

        Raises:
            NotPerExample: how many there are changes what one of them adds.
        """
        for crowd in crowds(self.task):
            x, y = crowd.x, crowd.y
            for statistic in (each for each in self.statistics() if each.name == round_.release.name):
                whole = _sides(statistic, Rows(x, y, torch.zeros_like(y)), broadcast)
                for part in crowd.parts:
                    own = _sides(statistic, Rows(x[part], y[part], torch.zeros_like(y[part])), broadcast)
                    for (name, *sides), (_, *others) in zip(own, whole, strict=True):
                        for side, other in zip(sides, others, strict=True):
                            crowd.check_same(f"'{name}' of '{statistic.name}'", part, side, other)

    def phases(self) -> tuple[Phase, ...]:
        """One a statistic or choice; the last is what a report draws, if it has several rounds."""
        *first, last = self.statistics()
        return (*(self._phase(each) for each in first), self._phase(last, main=True))

    def _phase(self, released: Statistic | Choice, *, main: bool = False) -> Phase:
        if isinstance(released, Choice):
            return choice_phase(released, self.clip(), self.task, self.broadcast, main=main)
        return statistic_phase(released, self.clip(), self.task, self.broadcast, main=main)


def _sides(released: Statistic | Choice, rows: Rows, broadcast: Tensors) -> list[tuple[str, *tuple[Tensor, ...]]]:
    """By name, the tensors of which every row has its own row."""
    if isinstance(released, Choice):
        return [("scores", released.scores(rows, broadcast))]
    return [(name, product.left, product.right) for name, product in released.products(rows, broadcast).items()]


def overall_mean(share: float) -> Statistic:
    """The mean of all rows, of norm at most 1 each, as ``server.tensors["mean"]`` ``[d]``; ``rows``, how many there are.

    Unit rows are ``square`` = 1 - |mean|^2 from it, on average of the squares.
    """

    def receive(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        found = moments.released_mean(sums, std)
        square = (1 - found.mean.square().sum()).clamp_min(moments.LEAST_SQUARE)
        server.tensors |= {"mean": found.mean, "rows": found.rows, "square": square}

    return Statistic("mean", share, moments.MEAN_WEIGHTS, lambda rows, broadcast: moments.mean_products(rows.x), receive)
