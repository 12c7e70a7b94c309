"""Algorithms that release statistics: each is one Gaussian mechanism, in whose round clients send
sums over rows, clipped by unit.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.data.embeddings import PublicRows
from fedsim.device import normal, to_device
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.contract import crowds
from fedsim.methods.messages import Diagnostic, Message, Round, Server, Task, Tensors, Values
from fedsim.methods.products import CoordinateClassifier, Product, is_classifier, mapped
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Release, Unit
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import (
    OuterProduct,
    clipped_statistics,
    exact_products,
    exact_squares,
    unit_weights,
)
from fedsim.privacy.statistics.spectral import descending, steady
from fedsim.seeds import Seeds

ROW_COUNT = "row_count"
ROW_COUNT_WEIGHT = 0.2
"""For unit client every release also counts its rows, with this weight beside the statistic's,
whose own joint norm is 1.
"""


@dataclass(frozen=True)
class Rows:
    """A cohort's rows: x ``[N, d]``, labels ``[N]``, and the number of each row's client among all
    clients ``[N]``.
    """

    x: Tensor
    y: Tensor
    client: Tensor

    @classmethod
    def of(cls, clients: Clients) -> Rows:
        """All rows of all members, in client order."""
        owner = torch.repeat_interleave(
            torch.tensor(clients.members), torch.tensor([len(x) for x in clients.x])
        )
        return cls(clients.pooled.x, clients.pooled.y, to_device(owner, clients.device))

    def by_label(
        self, products: Mapping[str, OuterProduct], classes: int
    ) -> dict[str, OuterProduct]:
        """Products of which each client's rows of a label have their mean in place of their sum."""
        _, own, size = torch.unique(
            self.client * classes + self.y, return_inverse=True, return_counts=True
        )
        return {
            name: OuterProduct(product.left / size[own, None], product.right)
            for name, product in products.items()
        }


@dataclass(frozen=True)
class Statistic:
    """What is released of all rows together: sums of outer products, by one Gaussian mechanism a
    step.

    For unit client a client's sum is clipped, in which rows of one label count as one: each label
    adds its rows' mean, so that neither many rows nor a frequent label take the whole norm. Every
    release clips by other factors, the clients' weights there; its sums are scaled to weights that
    add up to the number of clients, so counts and means of several releases agree. Counts then are
    no numbers of rows.

    Attributes:
        name: of the release, unique within an algorithm.
        share: of the budget in units of 1 / sigma^2, for all its steps together.
        weights: of the sums in an example's joint norm; their ratios count.
        products: (rows, broadcast): outer products of every row by name, as the weights name them;
            factors of norm at most 1, or the joint norm is clipped.
        receive: (server, sums, std): takes the noisy sums into ``server.tensors``; ``std`` is that
            of each one's noise, in its own units.
        steps: how often it is released.
    """

    name: str
    share: float
    weights: Mapping[str, float]
    products: Callable[[Rows, Tensors], Mapping[str, OuterProduct]]
    receive: Callable[[Server, Tensors, Mapping[str, float]], None]
    steps: int = 1


def statistic_phase(
    statistic: Statistic,
    clip: float,
    task: Task,
    broadcast: Callable[[Server], Tensors],
    *,
    main: bool = False,
) -> Phase:
    """The rounds in which a statistic is released; the sums are scaled so that nothing is clipped
    at C unless factors are too large.

    ``broadcast`` is as :class:`fedsim.methods.algorithm.Phase` has it; ``main``: a report draws
    these rounds.
    """
    # many steps share what one would have, and a mechanism that takes a share of the budget has 1 /
    # sqrt(share) times the noise
    release = Release(
        statistic.name, 1.0, statistic.steps, (statistic.share / statistic.steps) ** -0.5, main=main
    )
    whole = task.unit == "client"
    if math.isfinite(clip):
        unit = clip
    else:
        unit = 1.0
    # the statistic's own weights have norm 1 first, so that a row count weighs as much beside any
    weights = unit_weights(
        {**unit_weights(statistic.weights), ROW_COUNT: ROW_COUNT_WEIGHT}
        if whole
        else statistic.weights
    )
    norms = Norms(clip, weights={name: unit * weight for name, weight in weights.items()})

    def at_clients(clients: Clients, round_: Round, received: Tensors) -> Message:
        rows = Rows.of(clients)
        products = statistic.products(rows, received)
        if whole:
            one = rows.x.new_ones(len(rows.x), 1)
            products = rows.by_label({**products, ROW_COUNT: OuterProduct(one, one)}, task.classes)
        if products.keys() != weights.keys():
            raise ValueError(
                f"statistic '{statistic.name}' has the products {sorted(products)} and "
                f"weights of {sorted(weights)}"
            )
        sums, joint = clipped_statistics(
            products, norms, clients.layout if whole else clients.all_groups
        )
        clipped = (joint > clip * (1 + 1e-6)).float()
        noised = clients.add_noise(round_.release, round_.stream, sums)
        return clients.send(
            noised.sent,
            {"gradient_norm": Diagnostic(joint, "quantiles"), "clipped_fraction": clipped},
        )

    def at_server(server: Server, round_: Round, total: Tensors) -> Values:
        std = server.noise_std(release.name, task.clients) / unit
        # what has norm 1 a row has a norm of at most the row count, so a clipped client counts at
        # least 1, and all of them K
        if whole:
            scale = float(
                task.clients / (total[ROW_COUNT] / norms.weight(ROW_COUNT)).clamp_min(task.clients)
            )
        else:
            scale = 1.0
        sums = {name: total[name] / norms.weight(name) * scale for name in statistic.weights}
        statistic.receive(server, sums, {name: std / weights[name] * scale for name in sums})
        return {}

    return Phase(release, at_clients, at_server, broadcast, weights)


class OneShotParams(Params):
    """Parameters of algorithms that release statistics.

    Attributes:
        project: take rows to so many directions, those in which public rows vary most about their
            mean; 0: as they are.
    """

    project: int = Field(0, ge=0)


class OneShot(Algorithm):
    """Base class of an algorithm that releases statistics and samples from what they say.

    A subclass supplies :meth:`statistics` and :meth:`generator`. The statistics of a unit, an
    example's or the sum over all rows of a group or a client, are scaled to a joint norm of at most
    1.
    """

    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")

    @abstractmethod
    def statistics(self) -> tuple[Statistic, ...]:
        """What is released, one after another; shares add up to 1."""

    @property
    def projects(self) -> bool:
        """Whether statistics are of rows in a public subspace."""
        return bool(getattr(self.params, "project", 0))

    @property
    def dim(self) -> int:
        """Of the rows that statistics are of."""
        if self.projects:
            return int(self.params.project)
        return self.task.dim

    def ignores_partition(self) -> bool:
        """Where neither the clip nor the noise is a client's."""
        return self.task.unit != "client" and self.task.trust == "aggregate"

    def uses_public(self) -> bool:
        """For the subspace."""
        return self.projects

    def check_setting(self) -> None:
        """A subspace has no more directions than the rows."""
        if self.projects and self.params.project > self.task.dim:
            raise UserError(
                "params.project",
                f"{self.params.project} directions of {self.task.dim} dimensions",
                "give fewer",
            )

    def initial_server(self, seeds: Seeds) -> Server:
        """Nothing is trained; the public subspace, if there is one."""
        server = super().initial_server(seeds)
        if self.projects and self.task.public is not None:
            server.tensors |= PublicSubspace.of(self.task.public, self.params.project)
        return server

    def public_rows(self, server: Server) -> Tensor:
        """The public rows ``[n, dim]``, as those are that statistics are of; while it trains."""
        assert self.task.public is not None
        x = self.task.public.rows(server.device)
        if self.projects:
            return PublicSubspace(server.tensors).of_rows(x)
        return x

    def product(self, server: Server) -> Product:
        """For embeddings, whatever rows its statistics are of."""
        made = super().product(server)
        if self.projects:
            return PublicSubspace(server.tensors).for_embeddings(made)
        return made

    def clip(self) -> float:
        """Statistics have joint norm at most 1."""
        return 1.0

    def projected(self, statistic: Statistic) -> Statistic:
        """A statistic, of rows in the public subspace if there is one."""
        if not self.projects:
            return statistic

        def products(rows: Rows, received: Tensors) -> Mapping[str, OuterProduct]:
            return statistic.products(
                replace(rows, x=PublicSubspace(received).of_rows(rows.x)), received
            )

        return replace(statistic, products=products)

    def phase(self, statistic: Statistic, *, main: bool = False) -> Phase:
        """The rounds in which a statistic is released; ``main``: a report draws them."""

        def broadcast(server: Server) -> Tensors:
            return self.broadcast(server) | {
                name: server.tensors[name] for name in (MEAN_NAME, BASIS_NAME) if self.projects
            }

        return statistic_phase(
            self.projected(statistic), self.clip(), self.task, broadcast, main=main
        )

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def label_counts(self, server: Server) -> Tensor | None:
        """None for unit client: rows of a client and label count as one, whatever their number
        is.
        """
        if self.task.unit == "client":
            return None
        return self.class_rows(server)

    def class_rows(self, server: Server) -> Tensor | None:
        """Rows per class ``[C]`` as released for other units; None if they are not."""
        return None

    def broadcast(self, server: Server) -> Tensors:
        """Everything released so far."""
        return dict(server.tensors)

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Look at what made-up rows of one client add to the round's statistic as they become
        more.
        """
        for crowd in crowds(self.task):
            x = crowd.x
            y = crowd.y
            for statistic in (
                self.projected(each)
                for each in self.statistics()
                if each.name == round_.release.name
            ):
                whole = statistic.products(Rows(x, y, torch.zeros_like(y)), broadcast)
                for part in crowd.parts:
                    own = statistic.products(
                        Rows(x[part], y[part], torch.zeros_like(y[part])), broadcast
                    )
                    for name, product in own.items():
                        crowd.check_same(
                            f"'{name}' of '{statistic.name}'", part, product.left, whole[name].left
                        )
                        crowd.check_same(
                            f"'{name}' of '{statistic.name}'",
                            part,
                            product.right,
                            whole[name].right,
                        )

    def phases(self) -> tuple[Phase, ...]:
        """One a statistic; the last is what a report draws, if it has several rounds."""
        *first, last = self.statistics()
        return (*(self.phase(statistic) for statistic in first), self.phase(last, main=True))


def overall_mean(share: float) -> Statistic:
    """The mean of all rows, of norm at most 1 each, as ``server.tensors["mean"]`` ``[d]``;
    ``rows``, how many there are.

    Unit rows are ``square`` = 1 - |mean|^2 from it, on average of the squares.
    """

    def receive(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        found = moments.released_mean(sums, std)
        square = (1 - found.mean.square().sum()).clamp_min(moments.LEAST_SQUARE)
        server.tensors |= {"mean": found.mean, "rows": found.rows, "square": square}

    return Statistic(
        "mean",
        share,
        moments.MEAN_WEIGHTS,
        lambda rows, broadcast: moments.mean_products(rows.x),
        receive,
    )


MEAN_NAME = "public.mean"
BASIS_NAME = "public.basis"
"""Tensors of a server that hold the subspace."""


class PublicSubspace:
    """``y = B^T (x - mean)``, clipped to norm 1, and the way back ``x = mean + B y``; B ``[d, k]``
    orthonormal.

    Mean and directions are numbers of public rows alone, so they are free, and of a few directions
    a release needs less noise in all. How a private row lies outside of them is not released; a
    generated row is given a length of 1, which every row has, by a part outside that says nothing
    of its class.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = tensors[MEAN_NAME]
        self.basis = tensors[BASIS_NAME]

    @staticmethod
    def of(public: PublicRows, directions: int) -> Tensors:
        """The leading directions of the covariance of public rows, as a server keeps them."""
        x = public.rows().double()
        about = x - x.mean(0)
        _, vectors = descending(about.T @ about)
        return {MEAN_NAME: x.mean(0).float(), BASIS_NAME: steady(vectors[:, :directions]).float()}

    def of_rows(self, x: Tensor) -> Tensor:
        """Rows ``[N, k]`` of norm at most 1, of embeddings ``[N, d]``, each by itself to the last
        bit: their distances are counted.
        """
        r = exact_products(x - self.mean, self.basis.T)
        return (r / exact_squares(r).sqrt().clamp_min(1.0)).float()

    def rows(self, r: Tensor) -> Tensor:
        """Embeddings ``[N, d]`` in the subspace."""
        return self.mean + r @ self.basis.T

    def for_embeddings(self, made: Product) -> Product:
        """What was made of rows in the subspace, for embeddings."""
        if is_classifier(made):
            return CoordinateClassifier(made, self)
        return mapped(made, self.lift, self.basis.shape[1])

    def lift(self, rows: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Rows ``[n, k]`` of ``labels`` as embeddings of norm 1 ``[n, d]``; the part outside the
        subspace is white noise.

        Rows at the same place among those of their label share it: over the classes it then
        cancels, and a probe does not take it for a difference of classes.
        """
        inside = self.rows(rows)
        place = places(labels)
        basis = self.basis
        white = normal(
            (int(place.max()) + 1 if len(place) else 0, inside.shape[1]), stream, labels
        )[place]
        outside = white - (white @ basis) @ basis.T
        along = (inside * outside).sum(1, keepdim=True)
        square = outside.square().sum(1, keepdim=True).clamp_min(1e-12)
        missing = 1 - inside.square().sum(1, keepdim=True)
        # the positive root c of |inside + c outside| = 1; none where the part inside is longer
        length = ((along.square() + square * missing).clamp_min(0).sqrt() - along) / square
        return inside + length.clamp_min(0) * outside


def places(labels: Tensor) -> Tensor:
    """The place of every row among the rows of its label, in their order ``[n]``."""
    order = torch.argsort(labels, stable=True)
    sorted_labels = labels[order]
    found = torch.empty_like(order)
    found[order] = torch.arange(len(labels), device=labels.device) - torch.searchsorted(
        sorted_labels, sorted_labels
    )
    return found
