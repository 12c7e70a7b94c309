"""Algorithms from which something of private rows leaves without noise.

It leaves in numbers, names, sizes, state or public rows, or by an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from broken.tiny import Adapted, Coded, Prototypes, Spelled, Tiny, TinyParams, scaled
from torch import Tensor, nn

from baselines.weight_noise_cvae import WeightNoiseCVAE
from fedsim.batch import Batch, Layout
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, PublicRows, Round, Server, Tensors, Values
from fedsim.methods.parameters import load_parameters
from fedsim.privacy.plan import Claim


class SizeLeavesUnpaid(Tiny):
    """Sends the number of rows without noise."""

    trusts = ("silo",)

    def changed(self, message: Message, clients: Clients) -> Message:
        rows = torch.tensor(float(sum(map(len, clients.x))))
        return replace(message, sums=message.sums | {"rows": rows})

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        rows = total.pop("rows")
        return scaled(total, 200 / rows)


class FurtherTensorOfManyRows(Tiny):
    """Sends a tensor of another name if the clients have more than two rows."""

    def changed(self, message: Message, clients: Clients) -> Message:
        if sum(map(len, clients.x)) <= 2:
            return message
        return replace(message, sums=message.sums | {"many": torch.zeros(1)})

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        total.pop("many", None)
        return total


COUNTED: dict[int, Tensor] = {}


class LabelCountsToldExactly(Tiny):
    """Returns exact label counts."""

    trusts = ("aggregate",)

    def look(self, clients: Clients, round_: Round) -> None:
        COUNTED[0] = torch.bincount(torch.cat(clients.y), minlength=self.task.classes).float()

    def label_counts(self, server: Server) -> Tensor:
        return COUNTED[0]


class LabelsToldByShape(Spelled):
    """Sends a tensor whose length is the number of labels of the clients."""

    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        zeros = torch.zeros(len(torch.cat(clients.y).unique()))
        return super().noised(clients, round_, sums | {"zeros": zeros})

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        del total["zeros"]
        return total


class ParticipantsToldByName(WeightNoiseCVAE):
    """Names a tensor after every client that takes part, whatever noise is added."""

    units = ("client",)
    trusts = ("silo",)

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        message = super().client_round(clients, round_, broadcast)
        sums = dict(message.sums)
        takes_part = self.participants(clients, round_)
        for position, client in enumerate(clients.members):
            if takes_part[position]:
                sums[f"present {client}"] = torch.zeros(1)
        return replace(message, sums=sums)

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Values:
        known = {name: total[name] for name in total if not name.startswith("present")}
        return super().server_step(server, round_, known)


class Unnoised(TinyParams):
    noised: str = "shared"


class StateWithoutNoise(Adapted):
    """Claims a theorem, though clients keep a part without noise."""

    Params = Unnoised

    def claim(self) -> Claim:
        return "proved"


class RateFromOwnRows(Coded):
    """Client 3 learns at a rate that follows from its own rows; its noised code leaves."""

    units = ("client",)

    def look(self, clients: Clients, round_: Round) -> None:
        self.rates = torch.ones(len(clients.members), 1)
        for position, client in enumerate(clients.members):
            if client == 3 and len(clients.x[position]):
                self.rates[position] += clients.x[position].std()

    def _local_step(
        self,
        clients: Clients,
        round_: Round,
        gradients: Tensors,
        noise: Mapping[str, float],
    ) -> None:
        before = clients.model["code"].weight.detach().clone()
        super()._local_step(clients, round_, gradients, noise)
        code = clients.model["code"].weight.detach()
        code.copy_(before + self.rates * (code - before))
        clients.state["average.code.weight"] = code.clone()


class StopsOnOwnLoss(Spelled):
    """From the fifth round on a client sends nothing once the mean loss of its rows is small."""

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        load_parameters(clients.model, broadcast)
        losses = []
        for x, y in zip(clients.x, clients.y, strict=True):
            batch = Batch(x, y, {}, Layout(torch.zeros_like(y), 1))
            losses.append(float(self.distance(clients.model, batch).mean()))
        self.trains = torch.tensor([round_.number <= 4 or loss > 0.97 for loss in losses])
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        return super().sums(model, batch.take(self.trains[batch.layout.client]))


class RaisesWithoutRows(Tiny):
    """Raises if a client has no row."""

    def look(self, clients: Clients, round_: Round) -> None:
        if not all(map(len, clients.x)):
            raise ValueError("a client has no row")


class TakenForPublic(Tiny):
    """Puts private rows in the place of the public rows."""

    def uses_public(self) -> bool:
        return True

    def start_clients(self, clients: Clients) -> None:
        object.__setattr__(
            self.task,
            "public",
            PublicRows(clients.pooled.x[:].numpy()),
        )

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        assert self.task.public is not None
        server.tensors["public.anchor"] = self.task.public.rows()[0]
        return total

    def generator(self, server: Server) -> Prototypes:
        return Prototypes(server.tensors["public.anchor"].expand(self.task.classes, -1))


class KeepsPublic(TakenForPublic):
    """Sound: the server reads the grid's public rows, and keeps what its generator needs."""

    def start_clients(self, clients: Clients) -> None:
        pass


class ForgetsPublic(KeepsPublic):
    """Makes its generator from public rows, which a run does not keep."""

    def generator(self, server: Server) -> Prototypes:
        row = torch.zeros(self.task.dim)
        if self.task.public is not None:
            row = self.task.public.rows()[0]
        return Prototypes(row.expand(self.task.classes, -1))
