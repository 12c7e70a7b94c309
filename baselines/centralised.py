"""Centralised, the ceiling: all clients send their rows, and one linear probe is trained on them; not private."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from fedsim.methods.algorithm import Algorithm, Params
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.phase import Phase
from fedsim.methods.registry import register
from fedsim.models.linear import LinearClassifier, fit_linear
from fedsim.privacy.plan import Release


class CentralisedParams(Params):
    """Parameters of centralised.

    Attributes:
        probe_c: inverse strength of the L2 penalty; the grid's ``evaluation.probe_c`` makes it the ceiling of the curves.
    """

    probe_c: float = Field(0.1, gt=0)


@register("centralised")
class Centralised(Algorithm):
    """A linear probe on the pooled rows."""

    source = "the usual ceiling"
    Params = CentralisedParams
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
        x, y = (torch.cat([total[f"{part}.{client}"] for client in range(self.task.clients)]).numpy() for part in ("x", "y"))
        pooled = fit_linear(x, y, self.task.classes, self.params.probe_c)
        server.tensors |= {"weight": pooled.weight, "bias": pooled.bias}
        return {}

    def classifier(self, server: Server) -> LinearClassifier:
        """The pooled one."""
        return LinearClassifier(server.tensors["weight"], server.tensors["bias"])
