"""A client that is not sampled sends half of what it sent last, which its clip covers and its sampling rate does not."""

import torch
from broken.tiny import Spelled
from torch import nn

from fedsim.batch import Batch
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class LeftOutClientSendsOldUpdate(Spelled):
    units = ("client",)

    def start_clients(self, clients: Clients) -> None:
        members = len(clients.members)
        clients.state |= {name: torch.zeros(members, *p.shape) for name, p in clients.model.named_parameters()}

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.old = clients.state
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        total: Tensors = {}
        for client in range(batch.layout.clients):
            own = super().sums(model, batch.take(batch.layout.client == client))
            for name, value in own.items():
                self.old[name][client] = value if (batch.layout.client == client).any() else self.old[name][client] / 2
                total[name] = total.get(name, torch.zeros(())) + self.old[name][client]
        return total
