"""From the fifth round on a client falls silent for good once the loss on all its rows is above the least that it has seen."""

from dataclasses import replace

import torch
from broken.tiny import Spelled
from torch import nn

from fedsim.algorithm import Clients, Message, Tensors, load_parameters
from fedsim.batch import Batch
from fedsim.models.layers import Layout
from fedsim.privacy.plan import Release

PATIENCE = 4


class StopsOnOwnLoss(Spelled):
    def start_clients(self, clients: Clients) -> None:
        clients.state["least"] = torch.full((len(clients.members),), torch.inf)

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        load_parameters(clients.model, broadcast)
        least = clients.state["least"]
        for position, (x, y) in enumerate(zip(clients.x, clients.y, strict=True)):
            with torch.no_grad():
                loss = self.loss(clients.model, Batch(x, y, {}, Layout(torch.zeros_like(y), 1)))["distance"].sum()
            least[position] = -torch.inf if round_ > PATIENCE and loss > least[position] else min(loss, least[position])
        self.trains = least > -torch.inf
        return super().client_round(clients, round_, release, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        own = self.trains[batch.layout.client]
        layout = replace(batch.layout, client=batch.layout.client[own])
        return super().sums(model, replace(batch, x=batch.x[own], y=batch.y[own], layout=layout))
