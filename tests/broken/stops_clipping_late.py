"""From round 50 of 300 on nothing is clipped."""

import math
from dataclasses import replace

from broken.tiny import Spelled
from torch import nn

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.clipping import Norms

LATE = 50


class StopsClippingLate(Spelled):
    late_share = math.inf

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.is_late = round_.number >= LATE
        return super().client_round(clients, round_, broadcast)

    def norms(self, model: nn.Module) -> Norms:
        norms = super().norms(model)
        return replace(norms, clip=norms.clip * self.late_share) if getattr(self, "is_late", False) else norms


class ClientsStopClippingLate(StopsClippingLate):
    units = ("client",)


class ClipsMoreLate(StopsClippingLate):
    """Sound: it clips to half of the norm."""

    units = ("example", "group", "client")
    late_share = 0.5
