"""Local-only, the floor: every client's own linear probe, nothing shared; not private."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods.algorithm import Algorithm, Params
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.methods.phase import Phase
from fedsim.methods.registry import register
from fedsim.models.linear import LinearClassifier, LocalClassifiers, fit_linear
from fedsim.privacy.plan import Release


class LocalOnlyParams(Params):
    """Parameters of local-only.

    Attributes:
        probe_c: inverse strength of the L2 penalty; the grid's ``evaluation.probe_c`` makes it the floor of the curves.
    """

    probe_c: float = Field(0.1, gt=0)


@register("local-only")
class LocalOnly(Algorithm):
    """A linear probe a client."""

    source = "the usual floor"
    Params = LocalOnlyParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (Phase(Release("classifiers", 1.0, 1), self.client_round, self.server_step, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Nothing is shared."""
        return nn.Module()

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's classifier; it stays with the client, so a network would carry nothing."""
        return clients.send(own_classifiers(clients, self.task.classes, self.params.probe_c), uplink_bytes=0)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        """Keep them for the evaluation."""
        server.tensors |= total
        return {}

    def classifier(self, server: Server) -> LocalClassifiers:
        """Every client's own."""
        return LocalClassifiers([own_classifier(server.tensors, client) for client in range(self.task.clients)])


def own_classifiers(clients: Clients, classes: int, probe_c: float) -> Tensors:
    """Weights and biases of a probe on each member's rows, named by client."""
    tensors: dict[str, Tensor] = {}
    for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
        own = fit_linear(x.numpy(), y.numpy(), classes, probe_c)
        tensors |= {f"weight.{client}": own.weight, f"bias.{client}": own.bias}
    return tensors


def own_classifier(tensors: Tensors, client: int) -> LinearClassifier:
    """A client's classifier among :func:`own_classifiers`."""
    return LinearClassifier(tensors[f"weight.{client}"], tensors[f"bias.{client}"])
