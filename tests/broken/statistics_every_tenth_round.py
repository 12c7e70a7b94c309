"""In every tenth round the mean of all rows is added to what leaves with noise."""

from dataclasses import replace

import torch
from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class StatisticsEveryTenthRound(Tiny):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        if (round_.number + 1) % 10:
            return message
        bias = message.sums["prototypes.bias"] + torch.cat(clients.x).sum(0) / 200
        return replace(message, sums=message.sums | {"prototypes.bias": bias})
