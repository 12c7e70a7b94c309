"""A client's learning rate follows the spread of its own rows, which no noise covers; its noised code leaves."""

from collections.abc import Mapping

import torch
from broken.tiny import Coded

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class RateFromOwnRows(Coded):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.rates = self.rates_of(clients)
        return super().client_round(clients, round_, broadcast)

    def rates_of(self, clients: Clients) -> list[float]:
        return [1 + float(x.std()) if len(x) else 1.0 for x in clients.x]

    def _local_step(self, clients: Clients, round_: Round, gradients: Tensors, noise: Mapping[str, float]) -> None:
        before = clients.model["code"].weight.detach().clone()
        super()._local_step(clients, round_, gradients, noise)
        with torch.no_grad():
            step = clients.model["code"].weight - before
            clients.model["code"].weight.copy_(before + torch.tensor(self.rates)[:, None] * step)
        clients.state["average.code.weight"] = clients.model["code"].weight.detach().clone()


class RateOfTheLastClient(RateFromOwnRows):
    """Of one client only."""

    units = ("client",)

    def rates_of(self, clients: Clients) -> list[float]:
        return [rate if client == 3 else 1.0 for client, rate in zip(clients.members, super().rates_of(clients), strict=True)]


class RateAtSomeSeeds(RateFromOwnRows):
    """With one seed of four."""

    units = ("client",)

    def rates_of(self, clients: Clients) -> list[float]:
        return [1 + (clients.seeds.root % 4 == 1) * (rate - 1) for rate in super().rates_of(clients)]


class RateByNumber(RateFromOwnRows):
    """Sound: the rate follows the client's number."""

    units = ("example", "client")

    def rates_of(self, clients: Clients) -> list[float]:
        return [1 + client / 8 for client in clients.members]
