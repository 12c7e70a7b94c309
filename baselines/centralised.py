"""Centralised, the ceiling: all clients send their rows, and one linear probe is trained on them; not private."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedsim.methods.algorithm import Algorithm, Params
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.phase import Phase
from fedsim.methods.registry import register
from fedsim.models.linear import ProbeClassifier, probe_of, probe_tensors
from fedsim.models.probe import fit_probe
from fedsim.privacy.plan import Release


@register("centralised")
class Centralised(Algorithm):
    """The evaluation's linear probe on the pooled rows: its score is the ceiling, to the last bit."""

    source = "the usual ceiling"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (Phase(Release("rows", 1.0, 1), self.client_round, self.server_step, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained in rounds."""
        return nn.Module()

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's rows and labels, with their places in the data's order."""
        rows = {f"x.{client}": x for client, x in zip(clients.members, clients.x, strict=True)}
        labels = {f"y.{client}": y for client, y in zip(clients.members, clients.y, strict=True)}
        sent = sum(value.numel() * value.element_size() for value in (rows | labels).values())
        places = {f"place.{client}": numbers for client, numbers in zip(clients.members, clients.row_numbers, strict=True)}
        return clients.send(rows | labels | places, uplink_bytes=sent)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        """Train on all of them, in the data's order: a fit rounds by the order of its rows."""
        x, y, place = (torch.cat([total[f"{part}.{client}"] for client in range(self.task.clients)]) for part in ("x", "y", "place"))
        order = place.argsort()
        server.tensors |= probe_tensors(fit_probe(x[order].cpu().numpy(), y[order].cpu().numpy(), self.task.probe_c))
        return {}

    def classifier(self, server: Server) -> ProbeClassifier:
        """The pooled one."""
        return ProbeClassifier(probe_of(server.tensors), self.task.classes)
