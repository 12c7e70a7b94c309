"""Algorithms from which something of private rows leaves without noise.

It leaves in numbers, names, sizes, state or public rows, or by an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from broken.tiny import Adapted, Coded, Prototypes, Spelled, Tiny, TinyParams
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

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(
            message, sums={**message.sums, "rows": torch.tensor(float(sum(map(len, clients.x))))}
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        rows = total.pop("rows")
        return super().server_step(
            server, round_, {name: 200 * value / rows for name, value in total.items()}
        )


COUNTED: dict[int, Tensor] = {}


class LabelCountsToldExactly(Tiny):
    """Returns exact label counts."""

    trusts = ("aggregate",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        COUNTED[0] = torch.bincount(torch.cat(clients.y), minlength=self.task.classes).float()
        return super().client_round(clients, round_, broadcast)

    def label_counts(self, server: Server) -> Tensor:
        return COUNTED[0]


class LabelsToldByShape(Spelled):
    """Sends a tensor whose length is the number of labels of the clients."""

    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return super().noised(
            clients, round_, sums | {"zeros": torch.zeros(len(torch.cat(clients.y).unique()))}
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return super().server_step(
            server, round_, {name: value for name, value in total.items() if name != "zeros"}
        )


class ParticipantsToldByName(WeightNoiseCVAE):
    """The message has a tensor of zeros for every client that takes part: its names tell who does,
    whatever noise is added.
    """

    units = ("client",)
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        takes = zip(clients.members, self.participants(clients, round_).tolist(), strict=True)
        return replace(
            message,
            sums=message.sums
            | {f"present {client}": torch.zeros(1) for client, part in takes if part},
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        return super().server_step(
            server,
            round_,
            {name: value for name, value in total.items() if not name.startswith("present")},
        )


class Unnoised(TinyParams):
    noised: str = "shared"


class StateWithoutNoise(Adapted):
    """Claims a theorem, though clients keep a part without noise."""

    Params = Unnoised

    def claim(self) -> Claim:
        return "proved"


class RateFromOwnRows(Coded):
    """The last client's learning rate follows the spread of its own rows, which no noise covers;
    its noised code leaves.
    """

    units = ("client",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        held = zip(clients.members, clients.x, strict=True)
        self.rates = torch.tensor(
            [1 + float(x.std()) if client == 3 and len(x) else 1.0 for client, x in held]
        )
        return super().client_round(clients, round_, broadcast)

    def _local_step(
        self, clients: Clients, round_: Round, gradients: Tensors, noise: Mapping[str, float]
    ) -> None:
        before = clients.model["code"].weight.detach().clone()
        super()._local_step(clients, round_, gradients, noise)
        with torch.no_grad():
            step = clients.model["code"].weight - before
            clients.model["code"].weight.copy_(before + self.rates[:, None] * step)
        clients.state["average.code.weight"] = clients.model["code"].weight.detach().clone()


class StopsOnOwnLoss(Spelled):
    """From the fifth round on a client falls silent once the mean loss on all its rows is small
    enough for its taste.
    """

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        load_parameters(clients.model, broadcast)
        with torch.no_grad():
            batches = [
                Batch(x, y, {}, Layout(torch.zeros_like(y), 1))
                for x, y in zip(clients.x, clients.y, strict=True)
            ]
            losses = torch.stack([self.distance(clients.model, batch).mean() for batch in batches])
        if round_.number > 4:
            self.trains = losses > 0.97
        else:
            self.trains = torch.ones_like(losses, dtype=torch.bool)
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        return super().sums(model, batch.take(self.trains[batch.layout.client]))


class RaisesWithoutRows(Tiny):
    """Raises if a client has no row."""

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        if any(len(x) == 0 for x in clients.x):
            raise ValueError("a client has no row")
        return super().client_round(clients, round_, broadcast)


class TakenForPublic(Tiny):
    """Puts private rows in the place of the public rows."""

    def uses_public(self) -> bool:
        return True

    def start_clients(self, clients: Clients) -> None:
        object.__setattr__(self.task, "public", PublicRows(clients.pooled.x.numpy()))

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        assert self.task.public is not None
        server.tensors["public.anchor"] = self.task.public.rows()[0]
        return super().server_step(server, round_, total)

    def generator(self, server: Server) -> Prototypes:
        return Prototypes(server.tensors["public.anchor"].expand(self.task.classes, -1))


class KeepsPublic(TakenForPublic):
    """Sound: the server reads the grid's public rows, and keeps what its generator needs of
    them.
    """

    def start_clients(self, clients: Clients) -> None:
        pass


class ForgetsPublic(KeepsPublic):
    """Makes its generator from public rows, which a run does not keep."""

    def generator(self, server: Server) -> Prototypes:
        if self.task.public is not None:
            rows = self.task.public.rows()
        else:
            rows = torch.zeros(1, self.task.dim)
        return Prototypes(rows[:1].expand(self.task.classes, -1))
