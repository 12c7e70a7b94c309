"""The message has a tensor of zeros for every client that takes part: its names tell who does, whatever noise is added."""

from dataclasses import replace

import torch

from baselines.weight_noise_cvae import WeightNoiseCVAE
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors, Values


class ParticipantsToldByName(WeightNoiseCVAE):
    units = ("client",)
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        takes = zip(clients.members, self.participants(clients, round_).tolist(), strict=True)
        return replace(message, sums=message.sums | {f"present {client}": torch.zeros(1) for client, part in takes if part})

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        return super().server_step(server, round_, {name: value for name, value in total.items() if not name.startswith("present")})


class ToldInTheSum(ParticipantsToldByName):
    trusts = ("aggregate",)
