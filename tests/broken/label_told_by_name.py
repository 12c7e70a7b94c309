"""The message has a tensor of zeros if there is a row of label 0: its names tell that, whatever noise is added."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from broken.tiny import Spelled, Tiny
from torch import Tensor

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Server, Tensors

FEW = 4


class LabelToldByName(Tiny):
    trusts = ("aggregate",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(message, sums=message.sums | ({"label 0": torch.zeros(1)} if 0 in torch.cat(clients.y) else {}))

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return super().server_step(server, round_, {k: v for k, v in total.items() if not k.startswith("label")})


class FewRowsToldByNoisyName(Spelled):
    """Where all clients have few rows there is a tensor of zeros more, which is given to ``Clients.add_noise`` like all others."""

    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return super().noised(clients, round_, sums | ({"zeros": self.zeros(clients)} if self.are_there(clients) else {}))

    def are_there(self, clients: Clients) -> bool:
        return max(map(len, clients.x)) <= FEW

    def zeros(self, clients: Clients) -> Tensor:
        return torch.zeros(1)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return super().server_step(server, round_, {name: value for name, value in total.items() if name != "zeros"})


class ZerosAlwaysThere(FewRowsToldByNoisyName):
    """Sound: they say nothing."""

    units = ("example", "client")

    def are_there(self, clients: Clients) -> bool:
        return True


class LabelsToldByShape(ZerosAlwaysThere):
    """As many zeros as there are labels."""

    def zeros(self, clients: Clients) -> Tensor:
        return torch.zeros(len(torch.cat(clients.y).unique()))
