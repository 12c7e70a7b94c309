"""Base class of one-shot algorithms: they release statistics once and sample from a model of them.

Each statistic is released by one Gaussian mechanism. In its round, clients send sums over their
examples, and the contribution of each unit to the sums is clipped.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.batch import Layout
from fedsim.data.embeddings import PublicRows
from fedsim.device import normal, to_device
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.contract import Crowd, crowds
from fedsim.methods.messages import Diagnostic, Message, Round, Server, Task, Tensors, Values
from fedsim.methods.products import CoordinateClassifier, Product, is_classifier, mapped
from fedsim.privacy.clipping import Norms
from fedsim.privacy.noise import Deviations
from fedsim.privacy.plan import Release, Unit
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import (
    BLOCK,
    OuterProduct,
    Products,
    clipped_statistics,
    exact_products,
    exact_squares,
    unit_weights,
)
from fedsim.privacy.statistics.spectral import descending, steady
from fedsim.seeds import Seeds

ROW_COUNT = "row_count"
"""The name of the count of all clients' labels, which every release has for unit client."""
ROW_COUNT_WEIGHT = 0.2
"""The weight of that count beside the statistic, whose own joint norm is 1."""


@dataclass(frozen=True)
class Rows:
    """The examples of a cohort.

    Attributes:
        x: embeddings ``[N, d]``.
        y: labels ``[N]``.
        client: the number of each example's client among all clients ``[N]``.
    """

    x: Tensor
    y: Tensor
    client: Tensor

    @classmethod
    def of(cls, clients: Clients, rows: slice = slice(None)) -> Rows:
        """Return the examples of all members in client order, or the slice ``rows`` of them."""
        owner = torch.tensor(clients.members)[clients.layout.positions[rows]]
        return cls(
            clients.pooled.x[rows],
            clients.pooled.y[rows],
            to_device(owner, clients.device),
        )

    def by_label(
        self,
        products: Products,
        classes: int,
    ) -> Products:
        """Return the products, each divided by the size of its client and label.

        The size is the number of the client's examples that have this label. So the products of a
        client and label sum to their mean.
        """
        _, pair, sizes = torch.unique(
            self.client * classes + self.y,
            return_inverse=True,
            return_counts=True,
        )
        return {
            name: replace(product, left=product.left / sizes[pair, None])
            for name, product in products.items()
        }


@dataclass(frozen=True)
class Statistic:
    """Sums of outer products over all examples, released by one Gaussian mechanism per step.

    With unit client, a client's whole contribution is clipped. Each label adds the mean of its
    examples, so that a client with many examples, or a frequent label, does not use up the whole
    norm. Clipping multiplies a client by a factor, which differs between releases. So each release
    also counts every label of a client as 1 and clips this count with the rest. The server scales
    the sums of each release until these counts add up to the number of clients. Then counts and
    means of several releases fit together, but a count is no longer a number of examples.

    Attributes:
        name: the name of the release, unique within an algorithm.
        share: its share of the budget in units of 1 / sigma^2, for all its steps together.
        weights: the weights of the sums in an example's joint norm, by name; only their ratios
            count.
        products: (rows, broadcast) to the outer products of every example, by the names of the
            weights. Their factors should have norm at most 1, else the joint norm is clipped.
        receive: (server, sums, std): stores the noisy sums in ``server.tensors``. ``std`` is the
            standard deviation of the noise of each sum, in the sum's units.
        steps: how often it is released.
        block: how many examples' products are in memory together; one unit may have more.
    """

    name: str
    share: float
    weights: Mapping[str, float]
    products: Callable[[Rows, Tensors], Products]
    receive: Callable[[Server, Tensors, Deviations], None]
    steps: int = 1
    block: int = BLOCK


class _StatisticRounds:
    """What clients and server compute in the rounds that release a statistic.

    Sums are multiplied by the clip norm, so an example whose factors have norm 1 adds exactly the
    clip norm. For unit client the same holds for the mean of a client's examples of one label.
    Without clipping, sums are as they are.
    """

    def __init__(self, statistic: Statistic, clip: float, task: Task) -> None:
        self.statistic = statistic
        self.task = task
        self.by_client = task.unit == "client"
        self.scale = 1.0
        if math.isfinite(clip):
            self.scale = clip
        self.weights = unit_weights(statistic.weights)
        if self.by_client:
            # The statistic's own weights have norm 1 first, so that the count weighs the same
            # beside any statistic.
            self.weights = unit_weights({**self.weights, ROW_COUNT: ROW_COUNT_WEIGHT})
        scaled = {name: self.scale * weight for name, weight in self.weights.items()}
        self.norms = Norms(clip, weights=scaled)

    def at_clients(self, clients: Clients, round_: Round, received: Tensors) -> Message:
        """Return the cohort's message: the clipped and noised sums."""
        sums: Tensors = {}
        norms_of_blocks = []
        for block, units in self._blocks(clients):
            products = self._products(Rows.of(clients, block), received)
            _, block_norms = clipped_statistics(products, self.norms, units, sums)
            norms_of_blocks.append(block_norms)
            del products  # before those of the next block are computed
        joint_norms = torch.cat(norms_of_blocks)
        noised = clients.add_noise(round_.release, round_.stream, sums)
        # A norm that is not a number counts as clipped.
        clipped = ~(joint_norms <= self.norms.clip * (1 + 1e-6))
        return clients.send(
            noised.sent,
            {
                "gradient_norm": Diagnostic(joint_norms, "quantiles"),
                "clipped_fraction": clipped.float(),
            },
        )

    def _blocks(self, clients: Clients) -> Iterator[tuple[slice, Layout | None]]:
        """Yield the rows of every block, with the units that they belong to.

        The products of a block are in memory together, those of two blocks never. A unit lies in
        one block.
        """
        block = self.statistic.block
        units = clients.all_groups
        if self.by_client:
            units = clients.layout
        if units is not None:
            yield from units.blocks(block)
            return
        count = len(clients.pooled.y)
        for start in range(0, max(count, 1), block):
            yield slice(start, start + block), None

    def _products(self, rows: Rows, received: Tensors) -> Products:
        """Return the products of some rows, by the names of the weights.

        Raises:
            ValueError: the statistic has other products than weights.
        """
        products = self.statistic.products(rows, received)
        if self.by_client:
            ones = rows.x.new_ones(len(rows.x), 1)
            counted = {**products, ROW_COUNT: OuterProduct(ones, ones)}
            products = rows.by_label(counted, self.task.classes)
        if products.keys() != self.weights.keys():
            raise ValueError(
                f"statistic '{self.statistic.name}' has the products {sorted(products)} and "
                f"weights of {sorted(self.weights)}"
            )
        return products

    def at_server(self, server: Server, round_: Round, total: Tensors) -> Values:
        """Undo the weights of the noisy sums, and give them to the statistic's ``receive``."""
        statistic = self.statistic
        clients = self.task.clients
        rescale = 1.0
        if self.by_client:
            # A client with L labels has a norm of at most L and the count L. Clipped to norm 1 it
            # still counts at least 1, so K clients with examples count at least K.
            count = total[ROW_COUNT] / self.norms.weight(ROW_COUNT)
            rescale = float(clients / count.clamp_min(clients))
        std = server.noise_std(statistic.name, clients) / self.scale
        sums = {}
        stds = {}
        for name in statistic.weights:
            # The sum is taken out of the total, so that no third copy of a large one is made.
            sums[name] = total.pop(name) / self.norms.weight(name)
            sums[name] *= rescale
            stds[name] = std / self.weights[name] * rescale
        statistic.receive(server, sums, stds)
        return {}


def statistic_phase(
    statistic: Statistic,
    clip: float,
    task: Task,
    broadcast: Callable[[Server], Tensors],
    *,
    main: bool = False,
) -> Phase:
    """Return the rounds in which a statistic is released.

    Args:
        statistic: the statistic.
        clip: the clip norm of one unit's contribution.
        task: the public facts of the cell.
        broadcast: the tensors that clients receive, see :class:`fedsim.methods.algorithm.Phase`.
        main: whether a report draws these rounds.
    """
    # The steps divide the statistic's share of the budget among them. A mechanism that takes a
    # share of the budget has 1 / sqrt(share) times the noise.
    noise = (statistic.share / statistic.steps) ** -0.5
    release = Release(statistic.name, 1.0, statistic.steps, noise, main=main)
    rounds = _StatisticRounds(statistic, clip, task)
    return Phase(release, rounds.at_clients, rounds.at_server, broadcast, rounds.weights)


class OneShotParams(Params):
    """Parameters of algorithms that release statistics.

    Attributes:
        project: the number of directions to which embeddings are projected: those in which public
            embeddings vary most about their mean. At 0 embeddings are used as they are.
    """

    project: int = Field(0, ge=0)


class OneShot(Algorithm):
    """Base class of an algorithm that releases statistics and samples from a model of them.

    A subclass supplies :meth:`statistics` and :meth:`generator`. In each release, the contribution
    of every unit is clipped to norm 1. It is the sum over the unit's examples. For a client it is
    the sum of the means over its examples of each label, with the number of these labels.
    """

    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")

    @abstractmethod
    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics in the order of their release; their shares add up to 1."""

    @property
    def projects(self) -> bool:
        """Whether embeddings are projected to a public subspace."""
        return bool(getattr(self.params, "project", 0))

    @property
    def dim(self) -> int:
        """The dimension of the embeddings that the statistics are about."""
        if self.projects:
            return int(self.params.project)
        return self.task.dim

    def statistic_numbers(self) -> int:
        """Return the size of class sums and a second moment; a subclass may release more."""
        return (self.dim + self.task.classes) * self.dim

    def ignores_partition(self) -> bool:
        """Return whether neither the clip nor the noise belongs to a client."""
        return self.task.unit != "client" and self.task.trust == "aggregate"

    def uses_public(self) -> bool:
        """Return whether it needs public examples: only for the subspace."""
        return self.projects

    def check_setting(self) -> None:
        """Refuse a subspace with more directions than embeddings have dimensions.

        Raises:
            UserError: about the parameter ``project``.
        """
        if self.projects and self.params.project > self.task.dim:
            raise UserError(
                "params.project",
                f"{self.params.project} directions of {self.task.dim} dimensions",
                "give fewer",
            )

    def initial_server(self, seeds: Seeds) -> Server:
        """Return the server before the first round, with the public subspace if there is one."""
        server = super().initial_server(seeds)
        if self.projects and self.task.public is not None:
            server.tensors |= PublicSubspace.of(
                self.task.public,
                self.params.project,
            )
        return server

    def public_rows(self, server: Server) -> Tensor:
        """Return the public embeddings ``[n, dim]``, projected like those of the statistics.

        They are there only while the algorithm trains.
        """
        assert self.task.public is not None
        x = self.task.public.rows(server.device)
        if self.projects:
            return PublicSubspace(server.tensors).of_rows(x)
        return x

    def product(self, server: Server) -> Product:
        """Return the product of embeddings, also if they were projected."""
        product = super().product(server)
        if self.projects:
            return PublicSubspace(server.tensors).for_embeddings(product)
        return product

    def clip(self) -> float:
        """Return 1: one unit contributes at most norm 1 to each release."""
        return 1.0

    def projected(self, statistic: Statistic) -> Statistic:
        """Return the statistic of projected embeddings if there is a public subspace."""
        if not self.projects:
            return statistic

        def products(rows: Rows, received: Tensors) -> Products:
            x = PublicSubspace(received).of_rows(rows.x)
            return statistic.products(replace(rows, x=x), received)

        return replace(statistic, products=products)

    def phase(self, statistic: Statistic, *, main: bool = False) -> Phase:
        """Return the rounds in which a statistic is released.

        Args:
            statistic: the statistic.
            main: whether a report draws these rounds.
        """

        def broadcast(server: Server) -> Tensors:
            tensors = self.broadcast(server)
            if self.projects:
                tensors |= {name: server.tensors[name] for name in (MEAN_NAME, BASIS_NAME)}
            return tensors

        return statistic_phase(
            self.projected(statistic),
            self.clip(),
            self.task,
            broadcast,
            main=main,
        )

    def build(self, clients: int) -> nn.Module:
        """Return an empty model: nothing is trained by default."""
        return nn.Module()

    def label_counts(self, server: Server) -> Tensor | None:
        """Return the number of examples per class ``[C]``; None for unit client.

        For unit client all examples of a client and label count as one.
        """
        if self.task.unit == "client":
            return None
        return self.class_rows(server)

    def class_rows(self, server: Server) -> Tensor | None:
        """Return the released number of examples per class ``[C]``; None if it is not released.

        It is called for other units than client.
        """
        return None

    def broadcast(self, server: Server) -> Tensors:
        """Return everything that was released so far."""
        return dict(server.tensors)

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Test that an example's products do not depend on other examples of its client.

        Products of made-up examples are computed for a part of them and for all.

        Raises:
            NotPerExample: the products of an example change.
        """
        for statistic in self.statistics():
            if statistic.name == round_.release.name:
                for crowd in crowds(self.task):
                    _check_products(self.projected(statistic), crowd, broadcast)

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase per statistic.

        A report draws the rounds of the last phase if there are several.
        """
        *first, last = self.statistics()
        return (
            *map(self.phase, first),
            self.phase(last, main=True),
        )


def _check_products(statistic: Statistic, crowd: Crowd, broadcast: Tensors) -> None:
    """Compare the products of parts of a crowd with those of the whole crowd."""

    def products(part: slice) -> Products:
        y = crowd.y[part]
        return statistic.products(
            Rows(crowd.x[part], y, torch.zeros_like(y)),
            broadcast,
        )

    together = products(slice(None))
    for part in crowd.parts:
        for name, product in products(part).items():
            words = f"'{name}' of '{statistic.name}'"
            whole = together[name]
            crowd.check_same(words, part, product.left, whole.left)
            crowd.check_same(words, part, product.right, whole.right)
            # The cell says to which sum a row is added. It must be equal without any tolerance, so
            # "is equal" is compared with 1.
            same_cell = product.cell_of_rows == whole.cell_of_rows[part]
            expected = torch.ones_like(whole.cell_of_rows).double()
            crowd.check_same(words, part, same_cell.double(), expected)


def overall_mean(share: float) -> Statistic:
    """Return the statistic of the mean of all examples; each example has a norm of at most 1.

    The server stores it as ``server.tensors["mean"]`` ``[d]``. It also stores ``rows``, the noisy
    number of examples, and ``square`` = 1 - |mean|^2, the mean squared distance of examples of norm
    1 from their mean.

    Args:
        share: the statistic's share of the budget in units of 1 / sigma^2.
    """

    def receive(server: Server, sums: Tensors, std: Deviations) -> None:
        released = moments.released_mean(sums, std)
        square = (1 - released.mean.square().sum()).clamp_min(moments.LEAST_SQUARE)
        server.tensors |= {"mean": released.mean, "rows": released.rows, "square": square}

    return Statistic(
        "mean",
        share,
        moments.MEAN_WEIGHTS,
        lambda rows, broadcast: moments.mean_products(rows.x),
        receive,
    )


MEAN_NAME = "public.mean"
"""The name of the server's tensor that holds the mean of the public subspace."""
BASIS_NAME = "public.basis"
"""The name of the server's tensor that holds the directions of the public subspace."""


class PublicSubspace:
    """Projection to a subspace that is computed from public examples.

    For an orthonormal B ``[d, k]``, the projection and the way back are

        r = B^T (x - mean)    and    x = mean + B r,

    where r is shortened to norm 1 if it is longer.

    Mean and directions depend on public examples alone, so they cost no epsilon. A projection has
    fewer coordinates, so the noise on a release is shorter in total. The part of a private example
    outside the subspace is not released. A generated embedding gets a part outside the subspace
    that makes its norm 1, the norm of all embeddings. The direction of this part does not depend on
    its class.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = tensors[MEAN_NAME]
        self.basis = tensors[BASIS_NAME]

    @staticmethod
    def of(public: PublicRows, directions: int) -> Tensors:
        """Return the mean and the leading principal directions of public examples, by name."""
        x = public.rows().double()
        mean = x.mean(0)
        centred = x - mean
        _, vectors = descending(centred.T @ centred)
        basis = steady(vectors[:, :directions])
        return {MEAN_NAME: mean.float(), BASIS_NAME: basis.float()}

    def of_rows(self, x: Tensor) -> Tensor:
        """Return the projections ``[N, k]`` of embeddings ``[N, d]``, of norm at most 1.

        The result of a row does not depend on the other rows, even in the last bit: where distances
        of projections decide what is counted, a last bit could change a count.
        """
        r = exact_products(x - self.mean, self.basis.T)
        return (r / exact_squares(r).sqrt().clamp_min(1.0)).float()

    def rows(self, r: Tensor) -> Tensor:
        """Return embeddings ``[N, d]`` in the subspace, for projections ``[N, k]``."""
        return self.mean + r @ self.basis.T

    def for_embeddings(self, product: Product) -> Product:
        """Return a product of embeddings, made from a product of projections."""
        if is_classifier(product):
            return CoordinateClassifier(product, self)
        return mapped(product, self.lift, self.basis.shape[1])

    def lift(self, rows: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return embeddings of norm 1 ``[n, d]`` for projections ``rows`` ``[n, k]``.

        The part outside the subspace is white noise, and the i-th rows of all labels share its
        direction. So it nearly cancels between classes, and a probe hardly sees it.
        """
        inside = self.rows(rows)
        place = places(labels)
        count = 0
        if len(place):
            count = int(place.max()) + 1
        white = normal((count, inside.shape[1]), stream, labels)[place]
        outside = white - (white @ self.basis) @ self.basis.T
        along = (inside * outside).sum(1, keepdim=True)
        square = outside.square().sum(1, keepdim=True).clamp_min(1e-12)
        missing = 1 - inside.square().sum(1, keepdim=True)
        # The length c is the larger root of |inside + c outside| = 1. If no root exists, or c is
        # negative and becomes 0, the result is longer than 1.
        length = ((along.square() + square * missing).clamp_min(0).sqrt() - along) / square
        return inside + length.clamp_min(0) * outside


def places(labels: Tensor) -> Tensor:
    """Return the place of every row among the rows of its label, in their order, ``[n]``."""
    order = torch.argsort(labels, stable=True)
    sorted_labels = labels[order]
    first = torch.searchsorted(sorted_labels, sorted_labels)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(labels), device=labels.device) - first
    return place
