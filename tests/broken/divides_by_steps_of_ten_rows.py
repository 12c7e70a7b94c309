"""A client divides by its number of batches of ten rows: the eleventh row halves what all others count."""

import math
from dataclasses import replace

import torch
from broken.tiny import Spelled
from torch import nn

from fedsim.batch import Batch
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class DividesByStepsOfTenRows(Spelled):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.steps = [max(math.ceil(len(x) / 10), 1) for x in clients.x]
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        parts = [super(DividesByStepsOfTenRows, self).sums(model, _of(batch, client)) for client in range(batch.layout.clients)]
        return {name: torch.stack([part[name] / n for part, n in zip(parts, self.steps, strict=True)]).sum(0) for name in parts[0]}


def _of(batch: Batch, client: int) -> Batch:
    own = batch.layout.client == client
    return replace(batch, x=batch.x[own], y=batch.y[own], layout=replace(batch.layout, client=batch.layout.client[own]))
