"""Small sound algorithms from which the broken ones derive: a prototype per class, by DP-SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.clients import Clients, Noised
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams
from fedsim.methods.messages import Message, Round, Server, Tensors, Values
from fedsim.methods.parameters import load_parameters
from fedsim.models.layers import ClientCode, ClientLinear, one_hot
from fedsim.models.linear import LinearClassifier
from fedsim.privacy.clipping import ClippedSum, Norms, clipped_sum


class TinyParams(DPSGDParams):
    expected_batch: float = Field(16, gt=0)


def scaled(tensors: Tensors, factor: Any) -> Tensors:
    return {name: factor * value for name, value in tensors.items()}


class Tiny(DPSGD):
    """Squared distance of a row to its class's prototype."""

    Params = TinyParams
    units = ("example",)

    def build(self, clients: int) -> nn.Module:
        return nn.ModuleDict({"prototypes": nn.Linear(self.task.classes, self.task.dim)})

    def decoded(self, model: Any, y: Tensor) -> Tensor:
        return model["prototypes"](one_hot(y, self.task.classes))

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        return {"distance": self.distance(model, batch)}

    def distance(self, model: Any, batch: Batch) -> Tensor:
        return (batch.x - self.decoded(model, batch.y)).square().sum(1)

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        self.look(clients, round_)
        message = super().client_round(clients, round_, broadcast)
        return self.changed(message, clients)

    def look(self, clients: Clients, round_: Round) -> None:
        """Look at the clients before a round; a sound algorithm does not."""

    def changed(self, message: Message, clients: Clients) -> Message:
        """Return what is sent; a sound algorithm changes nothing."""
        return message

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Values:
        return super().server_step(
            server,
            round_,
            self.received(server, round_, total),
        )

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        """Return the sums of which the server takes its step; a sound algorithm takes all."""
        return total

    def generator(self, server: Server) -> Prototypes:
        with torch.no_grad():
            return Prototypes(self.decoded(server.model, torch.arange(self.task.classes)))


class Adapted(Tiny):
    """Each client adds a private linear map of the label to the shared one."""

    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["own"] = ClientLinear(clients, self.task.classes, self.task.dim)
        return model

    def distance(self, model: Any, batch: Batch) -> Tensor:
        own = model["own"](one_hot(batch.y, self.task.classes), batch.layout)
        return (batch.x - self.decoded(model, batch.y) - own).square().sum(1)


class BoundedParams(TinyParams):
    clip: float = Field(80.0, ge=50, le=100)


class Bounded(Tiny):
    """Allows only some clip norms."""

    Params = BoundedParams


class Coded(Tiny):
    """Each client learns a code, the mean of its rows' first entries; no generator reads it."""

    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["code"] = ClientCode(clients, 2)
        return model

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        distances = (batch.x[:, :2] - model["code"](batch.layout)).square().sum(1)
        return {**super().loss(model, batch), "code": distances}


class Classified(Tiny):
    """Sound: its classifier takes the nearest prototype."""

    def classifier(self, server: Server) -> Any:
        with torch.no_grad():
            rows = self.decoded(server.model, torch.arange(self.task.classes))
            return LinearClassifier(2 * rows, -rows.square().sum(1))


class Spelled(Tiny):
    """A round spelled out, so that a step of it can be replaced."""

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        self.look(clients, round_)
        load_parameters(clients.model, broadcast)
        rows = self.rows(clients, round_)
        batch = clients.batch(rows, round_.stream, {})
        sums = scaled(self.sums(clients.model, batch), self.factor(batch))
        return clients.send(self.noised(clients, round_, sums).sent)

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return clients.poisson(
            round_.stream,
            self.params.sample_rate,
            self.params.client_rate,
        )

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        return self.clipped(model, batch, self.norms(model)).sums

    def clipped(
        self,
        model: nn.Module,
        batch: Batch,
        norms: Norms,
    ) -> ClippedSum:
        return clipped_sum(model, self.distance, batch, norms)

    def factor(self, batch: Batch) -> Any:
        """Return a factor on all sums."""
        return 1.0

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return clients.add_noise(round_.release, round_.stream, sums)


class OneByOne(Spelled):
    """Samples one client after another, and draws what it adds to the rows of each sample."""

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        samples = []
        for position in range(len(clients.members)):
            samples += super().rows(clients.only([position]), round_)
        self.drawn = [
            clients.draws(member, len(sample), round_.stream, {"x": (self.task.dim,)})["x"]
            for member, sample in zip(clients.members, samples, strict=True)
        ]
        return samples

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        return super().sums(model, replace(batch, x=batch.x + torch.cat(self.drawn)))


class Prototypes:
    """A generator of noisy prototypes."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        noise = torch.randn(len(labels), self.rows.shape[1], generator=stream)
        return self.rows[labels] + 0.1 * noise
