"""Algorithms in which a row adds more than claimed, or other rows decide what it adds."""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from broken.tiny import Classified, Spelled, Tiny, TinyParams, scaled
from pydantic import Field
from torch import Tensor, nn

from baselines.dp_gaussian import DPGaussian
from fedsim.batch import Batch
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Round, Server, Tensors
from fedsim.methods.one_shot import Rows
from fedsim.models.layers import ClientCode, one_hot
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Claim
from fedsim.privacy.statistics.outer_products import OuterProduct


class BatchClippedAsOne(Tiny):
    """Clips the rows of a client together, though the unit is a row."""

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="client")


class GroupsClippedByRow(Tiny):
    """Clips each row, though the unit is a group of rows."""

    units = ("group",)

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="example")


class InCoordinates(TinyParams):
    precondition: float = Field(0.2, ge=0, lt=1)


class DoubleInCoordinates(Tiny):
    """Clips at twice the clip norm, after it has released coordinates."""

    Params = InCoordinates

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), clip=2 * self.clip())


class SensitivityOfATenth(Tiny):
    """Claims a tenth of its sensitivity."""

    def claim(self) -> Claim:
        return "stated"

    def sensitivity(self) -> float:
        return self.clip() / 10


class CountsDouble(Spelled):
    """Adds some rows twice."""

    def twice(self, batch: Batch) -> Tensor:
        """Return whether each row counts twice."""
        raise NotImplementedError

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        twice = super().sums(model, batch.take(self.twice(batch)))
        return {name: value + twice[name] for name, value in super().sums(model, batch).items()}


class OneLabelCountsDouble(CountsDouble):
    """Adds rows of label 6 twice."""

    def twice(self, batch: Batch) -> Tensor:
        return batch.y == 6


class OneHotCountsDouble(CountsDouble):
    """Adds rows twice that have a feature near 1."""

    def twice(self, batch: Batch) -> Tensor:
        return batch.x.max(1).values > 0.99


class DividesByStepsOfTenRows(Spelled):
    """Divides a client's sum by a number that follows from how many rows it has."""

    def look(self, clients: Clients, round_: Round) -> None:
        self.steps = [max(math.ceil(len(x) / 10), 1) for x in clients.x]

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        sums: Tensors = {}
        for client, steps in enumerate(self.steps):
            rows = batch.take(batch.layout.client == client)
            for name, value in super().sums(model, rows).items():
                sums[name] = sums.get(name, 0) + value / steps
        return sums


class ClipAtTheBatchMedian(Spelled):
    """Clips at the median norm of the batch if that is below the clip norm."""

    def limit(self, norms: Tensor) -> float:
        return min(self.clip(), float(norms[norms > 0].median()))

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        norms = self.clipped(model, batch, replace(self.norms(model), clip=1e9)).norms
        clip = self.clip()
        if bool((norms > 0).any()):
            clip = self.limit(norms)
        return self.clipped(model, batch, replace(self.norms(model), clip=clip)).sums


class ClipAtAHighQuantile(ClipAtTheBatchMedian):
    """Clips at the 90 % quantile of the batch's norms."""

    def limit(self, norms: Tensor) -> float:
        return min(self.clip(), float(norms.quantile(0.9)))


class NoClipWhileTheMeanIsSmall(ClipAtTheBatchMedian):
    """Does not clip if the mean norm of the batch is below the clip norm."""

    def limit(self, norms: Tensor) -> float:
        if float(norms.mean()) >= self.clip():
            return self.clip()
        return math.inf


class StopsClippingLate(Spelled):
    """Does not clip from round 50 on."""

    units = ("example", "client")
    is_late = False

    def look(self, clients: Clients, round_: Round) -> None:
        self.is_late = round_.number >= 50

    def norms(self, model: nn.Module) -> Norms:
        norms = super().norms(model)
        if self.is_late:
            return replace(norms, clip=math.inf)
        return norms


class NotANumberOfAZeroRow(Spelled):
    """Divides by the norm of a row, which may be zero."""

    def factor(self, batch: Batch) -> Tensor:
        norms = batch.x.norm(dim=1)
        return (norms / norms).prod()


LARGE = 1e9


class DoubleBesideALargeConstant(Spelled):
    """Sends a constant beside sums that are twice what they may be."""

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        constant = torch.tensor([LARGE * len(clients.members)])
        return super().noised(
            clients,
            round_,
            self.hidden(scaled(sums, 2), constant),
        )

    def hidden(self, sums: Tensors, constant: Tensor) -> Tensors:
        return sums | {"constant": constant}

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        del total["constant"]
        return total


class DoubleWithALargeConstant(DoubleBesideALargeConstant):
    """Sends the constant as a further number of each tensor."""

    def hidden(self, sums: Tensors, constant: Tensor) -> Tensors:
        return {name: torch.cat([value.flatten(), constant]) for name, value in sums.items()}

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        parameters = dict(server.model.named_parameters())
        return {name: value[:-1].view_as(parameters[name]) for name, value in total.items()}


class TimesAQuarterOfTheClients(Spelled):
    """Multiplies sums by a quarter of the number of clients, which is right for four."""

    def factor(self, batch: Batch) -> float:
        return self.task.clients / 4


class DividesByEightRootsOfTheWidth(Spelled):
    """Scales sums by the number of features, which is right for 64."""

    def factor(self, batch: Batch) -> float:
        return 8 / math.sqrt(self.task.dim)


class DoubleForALongGroup(Spelled):
    """Adds everything twice if a group has more than 20 rows."""

    units = ("group",)

    def look(self, clients: Clients, round_: Round) -> None:
        assert clients.groups is not None
        self.longest = max(int(own.bincount(minlength=1).max()) for own in clients.groups)

    def factor(self, batch: Batch) -> float:
        return 1 + (self.longest > 20)


START: list[Tensor] = []


class ScaledByTheFirstBatch(Tiny):
    """Scales all rows by the spread of the first batch that the process saw."""

    def distance(self, model: Any, batch: Batch) -> Tensor:
        if not START and len(batch.x) > 1:
            START.append(1 / (batch.x.detach().std(0) + 0.1))
        scale = [*START, 4.0][0]
        return super().distance(model, replace(batch, x=batch.x * scale))


class BatchLevelLoss(Tiny):
    """Adds a loss of the whole batch to that of each row."""

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        mean_distance = (batch.x - self.decoded(model, batch.y)).mean(0).square().sum()
        return {**super().loss(model, batch), "mmd": mean_distance.expand(len(batch))}


class HypernetworkOverBatch(Tiny):
    """Makes weights from the mean of the batch's codes."""

    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["code"] = ClientCode(clients, 2)
        model["hyper"] = nn.Linear(2, self.task.classes * self.task.dim)
        return model

    def distance(self, model: Any, batch: Batch) -> Tensor:
        code = model["code"](batch.layout).mean(0, keepdim=True)
        weights = model["hyper"](code).view(self.task.classes, self.task.dim)
        own = one_hot(batch.y, self.task.classes) @ weights
        return (batch.x - self.decoded(model, batch.y) - own).square().sum(1)


class WeightsFromLabelCounts(Tiny):
    """Weighs rows by how many rows of their label the client has."""

    counts = torch.ones(4, 10)

    def look(self, clients: Clients, round_: Round) -> None:
        counts = [torch.bincount(y, minlength=self.task.classes).float() for y in clients.y]
        self.counts = torch.stack(counts)

    def distance(self, model: Any, batch: Batch) -> Tensor:
        counts = self.counts[batch.layout.client, batch.y].clamp_min(1)
        return super().distance(model, batch) / counts


class Weighed(DPGaussian):
    """Weighs the rows of its statistic by other rows."""

    units = ("example",)

    def moment_products(
        self,
        rows: Rows,
        told: Tensors,
    ) -> dict[str, OuterProduct]:
        weight = self.weights(rows)[:, None]
        return {
            name: replace(product, left=product.left * weight)
            for name, product in super().moment_products(rows, told).items()
        }

    def weights(self, rows: Rows) -> Tensor:
        raise NotImplementedError


class Majority(Weighed):
    """Halves the weight of rows if the client has more than 60 of their label."""

    def weights(self, rows: Rows) -> Tensor:
        cell = rows.client * self.task.classes + rows.y
        return 1 - 0.5 * (torch.bincount(cell)[cell] > 60)


class ClientsCapped(Weighed):
    """Uses only the first 150 rows of a client."""

    def weights(self, rows: Rows) -> Tensor:
        starts = torch.searchsorted(rows.client, rows.client)
        return (torch.arange(len(rows.y)) - starts < 150).float()


class CapThousand(Weighed):
    """Uses only the 1,000 rows of a client that are nearest to the mean."""

    def moment_products(
        self,
        rows: Rows,
        told: Tensors,
    ) -> dict[str, OuterProduct]:
        self.mean = told["mean"]
        return super().moment_products(rows, told)

    def weights(self, rows: Rows) -> Tensor:
        far = (rows.x - self.mean).square().sum(1)
        kept = torch.zeros(len(rows.x))
        for client in rows.client.unique():
            own = (rows.client == client).nonzero()[:, 0]
            kept[own[far[own].argsort(stable=True)[:1000]]] = 1
        return kept


class RemembersRows(Classified):
    """Centres a row at the mean of the rows shown so far, so one row changes other predictions."""

    def classifier(self, server: Server) -> Any:
        known = super().classifier(server)
        shown = list[Tensor]()

        def probabilities(x: Tensor) -> Any:
            shown.append(x)
            return known.probabilities(x - torch.cat(shown).mean(0))

        return SimpleNamespace(probabilities=probabilities)
