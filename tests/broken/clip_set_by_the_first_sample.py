"""The largest norm of a client's first sample, if that is below C, is its clip norm from then on; it never had any noise."""

import torch
from broken.tiny import Spelled
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.clipping import Norms, clipped_sum


class ClipSetByTheFirstSample(Spelled):
    def start_clients(self, clients: Clients) -> None:
        clients.state["clip"] = torch.full((len(clients.members),), self.clip())

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.own, self.is_first = clients.state["clip"], round_.step == 0
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for client, clip in enumerate(self.own.tolist()):
            rows = (batch.layout.client == client).nonzero()[:, 0]
            found = clipped_sum(model, self.distance, batch.take(rows), Norms(clip))
            total = {name: total[name] + value for name, value in found.sums.items()}
            if self.is_first and len(rows):
                self.own[client] = found.norms.max().clamp_max(clip)
        return total

    def distance(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.loss(model, batch)["distance"]
