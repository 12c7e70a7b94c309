"""Centralised: one linear probe on the rows of all clients; not private."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedsim.methods import (
    Algorithm,
    Clients,
    Message,
    Params,
    Phase,
    ProbeClassifier,
    Release,
    Round,
    Server,
    Tensors,
    fit_probe,
    probe_of,
    probe_tensors,
    register,
)


@register("centralised")
class Centralised(Algorithm):
    """The evaluation's linear probe on the pooled rows, at its own strength and with the classes' natural shares."""

    source = "the usual upper reference"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (Phase(Release("rows", 1.0, 1), self.client_round, self.server_step, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained in rounds."""
        return nn.Module()

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's rows and labels."""
        rows = {f"x.{client}": x for client, x in zip(clients.members, clients.x, strict=True)}
        labels = {f"y.{client}": y for client, y in zip(clients.members, clients.y, strict=True)}
        sent = sum(value.numel() * value.element_size() for value in (rows | labels).values())
        return clients.send(rows | labels, uplink_bytes=sent)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        """Train on all of them."""
        x, y = (torch.cat([total[f"{part}.{client}"] for client in range(self.task.clients)]).cpu().numpy() for part in ("x", "y"))
        server.tensors |= probe_tensors(fit_probe(x, y, self.task.probe_c))
        return {}

    def classifier(self, server: Server) -> ProbeClassifier:
        """The pooled one."""
        return ProbeClassifier(probe_of(server.tensors), self.task.classes)
