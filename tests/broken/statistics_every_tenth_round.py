"""In every tenth round the mean of all rows is added to what leaves with noise."""

from dataclasses import replace

import torch
from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class StatisticsEveryTenthRound(Tiny):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, release, broadcast)
        if (round_ + 1) % 10:
            return message
        bias = message.sums["prototypes.bias"] + torch.cat(clients.x).sum(0) / 200
        return replace(message, sums=message.sums | {"prototypes.bias": bias})
