"""Silos are weighed by their numbers of rows, which leave with the sum."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors


class SizeLeavesUnpaid(Tiny):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(message, sums={**message.sums, "rows": torch.tensor(float(sum(map(len, clients.x))))})

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        rows = total.pop("rows")
        return super().server_step(server, round_, {name: 200 * value / rows for name, value in total.items()})
