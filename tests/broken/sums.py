"""What a row adds is more than is claimed, by the clip or what it is set by; or it follows from
other rows, or from earlier ones.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from broken.tiny import Classified, Spelled, Tiny
from torch import Tensor, nn

from baselines.dp_gaussian import DPGaussian
from fedsim.batch import Batch
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.one_shot import Rows
from fedsim.models.layers import ClientCode, one_hot
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Claim
from fedsim.privacy.statistics.outer_products import OuterProduct


class BatchClippedAsOne(Tiny):
    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="client")


class GroupsClippedByRow(Tiny):
    units = ("group",)

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="example")


class SensitivityOfATenth(Tiny):
    def claim(self) -> Claim:
        return "stated"

    def sensitivity(self) -> float:
        return self.clip() / 10


class OneLabelCountsDouble(Spelled):
    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        twice = super().sums(model, batch.take(batch.y == 6))
        return {name: value + twice[name] for name, value in super().sums(model, batch).items()}


class DividesByStepsOfTenRows(Spelled):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.steps = [max(math.ceil(len(x) / 10), 1) for x in clients.x]
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        parts = [
            super(DividesByStepsOfTenRows, self).sums(model, batch.take(batch.layout.client == i))
            for i in range(len(self.steps))
        ]
        return {
            name: torch.stack(
                [part[name] / n for part, n in zip(parts, self.steps, strict=True)]
            ).sum(0)
            for name in parts[0]
        }


class ClipAtTheBatchMedian(Spelled):
    def limit(self, norms: Tensor) -> float:
        return min(self.clip(), float(norms[norms > 0].median()))

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        found = self.clipped(model, batch, replace(self.norms(model), clip=1e9)).norms
        if bool((found > 0).any()):
            clip = self.limit(found)
        else:
            clip = self.clip()
        return self.clipped(model, batch, replace(self.norms(model), clip=clip)).sums


class ClipAtAHighQuantile(ClipAtTheBatchMedian):
    def limit(self, norms: Tensor) -> float:
        return min(self.clip(), float(norms.quantile(0.9)))


class NoClipWhileTheMeanIsSmall(ClipAtTheBatchMedian):
    def limit(self, norms: Tensor) -> float:
        if float(norms.mean()) >= self.clip():
            return self.clip()
        return math.inf


class StopsClippingLate(Spelled):
    units = ("example", "client")

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.is_late = round_.number >= 50
        return super().client_round(clients, round_, broadcast)

    def norms(self, model: nn.Module) -> Norms:
        norms = super().norms(model)
        if getattr(self, "is_late", False):
            return replace(norms, clip=math.inf)
        return norms


class NotANumberOfAZeroRow(Spelled):
    """It divides by the norm of a row, which may be zero."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        norms = batch.x.norm(dim=1)
        one = (norms / norms).prod()
        return {name: one * value for name, value in super().sums(model, batch).items()}


LARGE = 1e9


class DoubleBesideALargeConstant(Spelled):
    """It sends a constant beside sums that are twice what they may be."""

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        constant = torch.tensor([LARGE * len(clients.members)])
        return super().noised(clients, round_, self.hidden(sums, constant))

    def hidden(self, sums: Tensors, constant: Tensor) -> Tensors:
        return {name: 2 * value for name, value in sums.items()} | {"constant": constant}

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return super().server_step(server, round_, self.shown(server, total))

    def shown(self, server: Server, total: Tensors) -> Tensors:
        return {name: value for name, value in total.items() if name != "constant"}


class DoubleWithALargeConstant(DoubleBesideALargeConstant):
    """The constant is a further number of each tensor."""

    def hidden(self, sums: Tensors, constant: Tensor) -> Tensors:
        return {name: torch.cat([2 * value.flatten(), constant]) for name, value in sums.items()}

    def shown(self, server: Server, total: Tensors) -> Tensors:
        shapes = {name: p.shape for name, p in server.model.named_parameters()}
        return {name: value[:-1].view(shapes[name]) for name, value in total.items()}


class TimesAQuarterOfTheClients(Spelled):
    """Right for four clients."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        share = self.task.clients / 4
        return {name: share * value for name, value in super().sums(model, batch).items()}


class DividesByEightRootsOfTheWidth(Spelled):
    """Right for 64 features."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        share = 8 / math.sqrt(self.task.dim)
        return {name: share * value for name, value in super().sums(model, batch).items()}


class DoubleForALongGroup(Spelled):
    units = ("group",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        assert clients.groups is not None
        longest = max(int(own.bincount().max()) if len(own) else 0 for own in clients.groups)
        self.share = 1 + (longest > 20)
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        share = getattr(self, "share", 1)
        return {name: share * value for name, value in super().sums(model, batch).items()}


class OneHotCountsDouble(Spelled):
    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        twice = super().sums(model, batch.take(batch.x.max(1).values > 0.99))
        return {name: value + twice[name] for name, value in super().sums(model, batch).items()}


START: list[Tensor] = []


class ScaledByTheFirstBatch(Tiny):
    def distance(self, model: Any, batch: Batch) -> Tensor:
        if not START and len(batch.x) > 1:
            START.append(1 / (batch.x.detach().std(0) + 0.1))
        return super().distance(model, replace(batch, x=batch.x * (START[0] if START else 4.0)))


class BatchLevelLoss(Tiny):
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        mean_distance = (batch.x - self.decoded(model, batch.y)).mean(0).square().sum()
        return {**super().loss(model, batch), "mmd": mean_distance.expand(len(batch))}


class HypernetworkOverBatch(Tiny):
    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["code"] = ClientCode(clients, 2)
        model["hyper"] = nn.Linear(2, self.task.classes * self.task.dim)
        return model

    def distance(self, model: Any, batch: Batch) -> Tensor:
        weights = model["hyper"](model["code"](batch.layout).mean(0, keepdim=True)).view(
            self.task.classes, self.task.dim
        )
        return (
            (batch.x - self.decoded(model, batch.y) - one_hot(batch.y, self.task.classes) @ weights)
            .square()
            .sum(1)
        )


class WeightsFromLabelCounts(Tiny):
    counts = torch.ones(4, 10)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.counts = torch.stack(
            [torch.bincount(y, minlength=self.task.classes).float() for y in clients.y]
        )
        return super().client_round(clients, round_, broadcast)

    def distance(self, model: Any, batch: Batch) -> Tensor:
        return super().distance(model, batch) / self.counts[batch.layout.client, batch.y].clamp_min(
            1
        )


class Weighed(DPGaussian):
    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        weight = self.weights(rows)[:, None]
        return {
            name: OuterProduct(product.left * weight, product.right)
            for name, product in super().moment_products(rows, told).items()
        }

    def weights(self, rows: Rows) -> Tensor:
        raise NotImplementedError


class Majority(Weighed):
    def weights(self, rows: Rows) -> Tensor:
        cell = rows.client * self.task.classes + rows.y
        return 1 - 0.5 * (torch.bincount(cell)[cell] > 60)


class ClientsCapped(Weighed):
    def weights(self, rows: Rows) -> Tensor:
        starts = torch.searchsorted(rows.client, rows.client)
        return (torch.arange(len(rows.y)) - starts < 150).float()


class CapThousand(Weighed):
    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
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
    """Its classifier centres a row at the mean of those that it was shown before, so one held-out
    row changes what others are taken for.
    """

    def classifier(self, server: Server) -> Any:
        known = super().classifier(server)
        shown = list[Tensor]()

        def probabilities(x: Tensor) -> Any:
            shown.append(x)
            return known.probabilities(x - torch.cat(shown).mean(0))

        return SimpleNamespace(probabilities=probabilities)
