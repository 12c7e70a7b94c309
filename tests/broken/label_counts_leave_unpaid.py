"""Label counts ride on the sum; the noise is the clipped gradients', which a count exceeds by far."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors


class LabelCountsLeaveUnpaid(Tiny):
    trusts = ("aggregate",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        counts = torch.bincount(torch.cat(clients.y), minlength=self.task.classes).float()
        return replace(message, sums={**message.sums, "label_counts": counts})

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        server.tensors["label_counts"] = total.pop("label_counts")
        return super().server_step(server, round_, total)
