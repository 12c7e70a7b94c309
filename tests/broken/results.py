"""Algorithms that cannot be planned, repeated, packed, resumed or sent, or spoil results."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from broken.tiny import Prototypes, Spelled, Tiny, TinyParams, scaled
from torch import Tensor

from fedsim.batch import Batch
from fedsim.errors import UserError
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors


class NoSettings(Tiny):
    """States no unit."""

    units = ()


class CannotBePlanned(Tiny):
    """Raises when it is planned."""

    def clip(self) -> float:
        return 1 / 0


class RowsOnly(TinyParams):
    rows_only: bool = True


class ClientIsRefused(Tiny):
    """Refuses a unit that it states, with its default parameters."""

    Params = RowsOnly
    units = ("example", "client")
    trusts = ("silo",)

    def check_setting(self) -> None:
        if self.params.rows_only and self.task.unit == "client":
            raise UserError("rows_only", "clients have no plan", "leave it out")


class Wide(TinyParams):
    latent: int = 16


class ClientIsRefusedIfWide(Tiny):
    """Refuses a unit that it states, with its default parameters, but not with small ones."""

    Params = Wide
    units = ("example", "client")
    trusts = ("silo",)

    def check_setting(self) -> None:
        if self.params.latent > 4 and self.task.unit == "client":
            raise UserError("latent", "clients have no plan", "give less")


class AnyUnit(RowsOnly):
    rows_only: bool = False


class ClientMayBeRefused(ClientIsRefused):
    """Refuses a unit that it states if a parameter is set."""

    Params = AnyUnit


class Raises(Tiny):
    """Raises in the first round."""

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Mapping[str, float]:
        return {"never": 1 / round_.number}


class Exits(Raises):
    """Ends the process in the first round."""

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Mapping[str, float]:
        raise SystemExit(0)


class GlobalRandomState(Tiny):
    """Draws from torch's global random generator."""

    def shake(self) -> Tensor:
        return torch.randn(self.task.dim)

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        bias = total["prototypes.bias"] + 1e-3 * self.shake()
        return total | {"prototypes.bias": bias}


class NotDeterministic(GlobalRandomState):
    """Draws from a generator without a seed."""

    def shake(self) -> Tensor:
        return torch.from_numpy(np.random.default_rng().standard_normal(self.task.dim)).float()


class DependsOnPacking(Tiny):
    """Divides sums by the number of clients on its actor."""

    trusts = ("aggregate",)

    def changed(self, message: Message, clients: Clients) -> Message:
        return replace(
            message,
            sums=scaled(message.sums, 1 / len(clients.members)),
        )


class ResumeDiffers(Tiny):
    """Counts rounds in an attribute, which a checkpoint does not keep."""

    rounds_seen = 0

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        self.rounds_seen += 1
        return scaled(total, 1 / self.rounds_seen)


class DataChanged(Tiny):
    """Writes into the labels of its clients."""

    def look(self, clients: Clients, round_: Round) -> None:
        for y in clients.y:
            y.clamp_(max=1)


class Told(float):
    """A number that cannot be pickled."""

    def __init__(self, value: float) -> None:
        self.text = lambda: f"{value:g}"


class UnserialisableMessage(Tiny):
    """Sends a diagnostic that cannot be pickled."""

    def changed(self, message: Message, clients: Clients) -> Message:
        told = Told(len(clients.members))
        return replace(
            message,
            diagnostics={**message.diagnostics, "clients": [told]},
        )


class RowsAreNotFinite(Tiny):
    """Generates rows that are not numbers."""

    def generator(self, server: Server) -> Prototypes:
        return Prototypes(0 * super().generator(server).rows / 0)


class SumsAreNotFinite(Spelled):
    """Sends sums that are not numbers."""

    def factor(self, batch: Batch) -> float:
        return math.nan


class LearnsNothing(Tiny):
    """Has a loss that depends on no row."""

    def distance(self, model: Any, batch: Batch) -> Tensor:
        return 0 * super().distance(model, batch)


class FourClientsOf64Features(Tiny):
    """Sound, but refuses all sizes except those of the small cell."""

    def check_setting(self) -> None:
        if (self.task.clients, self.task.dim) != (4, 64):
            raise UserError("clients", "there are not 4 of 64 features", "give 4")
