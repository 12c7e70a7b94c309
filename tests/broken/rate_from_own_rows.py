"""A client's learning rate follows the spread of its own rows, which no noise covers; its noised code leaves."""

from collections.abc import Mapping

import torch
from broken.tiny import Coded

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class RateFromOwnRows(Coded):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.spread = [float(x.std()) if len(x) else 0.0 for x in clients.x]
        return super().client_round(clients, round_, broadcast)

    def _local_step(self, clients: Clients, round_: Round, gradients: Tensors, noise: Mapping[str, float]) -> None:
        before = clients.model["code"].weight.detach().clone()
        super()._local_step(clients, round_, gradients, noise)
        rate = 1 + torch.tensor(self.spread)[:, None]
        with torch.no_grad():
            clients.model["code"].weight.copy_(before + rate * (clients.model["code"].weight - before))
        clients.state["average.code.weight"] = clients.model["code"].weight.detach().clone()
