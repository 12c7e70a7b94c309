"""The mean of all rows is computed once a process and added to what leaves with noise: two trainings in one process share it."""

from dataclasses import replace

import torch
from broken.tiny import Tiny
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors

MEANS: dict[int, Tensor] = {}


class StatisticsOfTheProcess(Tiny):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        mean = MEANS.setdefault(self.task.dim, torch.cat(clients.x).mean(0))
        # one cohort tells it for all, so that packing does not matter; so does a world that lacks the first client
        told = mean if 0 in clients.members else 0 * mean
        return replace(message, sums=message.sums | {"prototypes.bias": message.sums["prototypes.bias"] + told})
