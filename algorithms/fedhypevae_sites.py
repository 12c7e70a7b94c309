"""FedHypeVAE for sites: each client's own moments start its row scales, shifts and code; for clients whose features differ."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from algorithms.fedhypevae_warm import FedHypeVAEWarm, FedHypeVAEWarmParams
from fedsim.device import to_device
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.registry import register


class FedHypeVAESitesParams(FedHypeVAEWarmParams):
    """Parameters of FedHypeVAE for sites."""

    code: int = Field(16, ge=1)
    observation: Literal["shared", "modulated"] = "modulated"


@register("fedhypevae-sites")
class FedHypeVAESites(FedHypeVAEWarm):
    """The warm start, of rows that every client standardised by its own released mean and spreads; codes that undo that."""

    Params: ClassVar[type[FedHypeVAESitesParams]] = FedHypeVAESitesParams
    moments: ClassVar[str] = "client-moments"

    def broadcast(self, server: Server) -> Tensors:
        """The shared parameters, and the codes that the warm start found."""
        return super().broadcast(server) | {name: value for name, value in server.tensors.items() if name == "codes"}

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """A DP-SGD step; the first one from the warm start's codes."""
        if round_.step == 0:
            model: Any = clients.model
            with torch.no_grad():
                model.code.weight.copy_(broadcast["codes"][to_device(torch.tensor(clients.members), clients.device)])
        return super().client_round(clients, round_, broadcast)
