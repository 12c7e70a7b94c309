"""What a row adds, or what it is taken for, follows from other rows: their statistics, their number, or that they were seen before."""

from collections.abc import Mapping
from typing import Any

import torch
from broken.tiny import Classified, Tiny
from torch import Tensor, nn

from baselines.dp_gaussian import DPGaussian
from fedsim.batch import Batch
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.one_shot import Rows
from fedsim.models.layers import ClientCode, one_hot
from fedsim.privacy.statistics.outer_products import OuterProduct


class BatchLevelLoss(Tiny):
    """An MMD between the batch's rows and their prototypes."""

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        mean_distance = (batch.x - self.decoded(model, batch.y)).mean(0).square().sum()
        return {**super().loss(model, batch), "mmd": mean_distance.expand(len(batch))}


class HypernetworkOverBatch(Tiny):
    """A hypernetwork makes one weight set for the whole batch, from the mean of its rows' codes."""

    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["code"] = ClientCode(clients, 2)
        model["hyper"] = nn.Linear(2, self.task.classes * self.task.dim)
        return model

    def distance(self, model: Any, batch: Batch) -> Tensor:
        weights = model["hyper"](model["code"](batch.layout).mean(0, keepdim=True)).view(self.task.classes, self.task.dim)
        return (batch.x - self.decoded(model, batch.y) - one_hot(batch.y, self.task.classes) @ weights).square().sum(1)


class OneLabelShares(Tiny):
    """Rows of label 7 share what one would add: one more row of it makes all others less."""

    def distance(self, model: Any, batch: Batch) -> Tensor:
        shared, distance = batch.y == 7, super().distance(model, batch)
        return torch.where(shared, distance / shared.sum().clamp_min(1), distance)


class WeightsFromLabelCounts(Tiny):
    """Rare labels weigh more, by exact counts of the client's rows; one row changes the weights of all others of its label."""

    counts = torch.ones(4, 10)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.counts = torch.stack([torch.bincount(y, minlength=self.task.classes).float() for y in clients.y])
        return super().client_round(clients, round_, broadcast)

    def distance(self, model: Any, batch: Batch) -> Tensor:
        return super().distance(model, batch) / self.counts[batch.layout.client, batch.y].clamp_min(1)


class Weighed(DPGaussian):
    """The moments of DP-Gaussian with a weight for every row, by what else its client holds."""

    units = ("example",)

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        weight = self.weights(rows)[:, None]
        return {name: OuterProduct(product.left * weight, product.right) for name, product in super().moment_products(rows, told).items()}

    def weights(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def of_its_label(self, rows: Rows) -> Tensor:
        """How many rows of a row's label its client holds."""
        cell = rows.client * self.task.classes + rows.y
        return torch.bincount(cell)[cell]


class FrequentLabelsCapped(Weighed):
    """Rows of a label of which a client holds many share what 10 would add: one more row makes all others less."""

    def weights(self, rows: Rows) -> Tensor:
        return (10 / self.of_its_label(rows)).clamp_max(1)


class Majority(Weighed):
    """Rows of a label of which a client holds more than 60 count half."""

    def weights(self, rows: Rows) -> Tensor:
        return 1 - 0.5 * (self.of_its_label(rows) > 60)


class ClientsCapped(Weighed):
    """Of a client's rows those after the first 150 count for nothing: one more row at the front pushes out another."""

    def weights(self, rows: Rows) -> Tensor:
        starts = torch.searchsorted(rows.client, rows.client)
        return (torch.arange(len(rows.y)) - starts < 150).float()


class CapThousand(Weighed):
    """A client uses the 1,000 of its rows that are nearest to the released mean: one more of them pushes out another."""

    def moment_products(self, rows: Rows, told: Tensors) -> dict[str, OuterProduct]:
        self.mean = told["mean"]
        return super().moment_products(rows, told)

    def weights(self, rows: Rows) -> Tensor:
        far, kept = (rows.x - self.mean).square().sum(1), torch.zeros(len(rows.x))
        for client in rows.client.unique():
            own = (rows.client == client).nonzero()[:, 0]
            kept[own[far[own].argsort(stable=True)[:1000]]] = 1
        return kept


class RemembersRows(Classified):
    """Its classifier centres a row at the mean of those that it was shown before, so one held-out row changes what others are taken for."""

    def classifier(self, server: Server) -> Any:
        return Remembering(super().classifier(server))


class Remembering:
    def __init__(self, known: Any) -> None:
        self.known, self.shown = known, list[Tensor]()

    def probabilities(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.known.probabilities(x - torch.cat(self.shown).mean(0))  # type: ignore[no-any-return]
