"""Local-only, the floor: every client's own linear probe; nothing is shared; not private."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fedsim.methods import (
    Algorithm,
    Clients,
    LocalClassifiers,
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


@register("local-only")
class LocalOnlyLinear(Algorithm):
    """The evaluation's linear probe on each client's rows; its score is the mean of theirs.

    The reference of this name has probes of its own, which weigh classes evenly, at the best of several penalties: it is usually higher.
    """

    source = "the usual floor"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (Phase(Release("classifiers", 1.0, 1), self.client_round, keep, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Nothing is shared."""
        return nn.Module()

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's classifier; it stays with the client, so a network would carry nothing."""
        return clients.send(own_classifiers(clients, self.task.probe_c), uplink_bytes=0)

    def classifier(self, server: Server) -> LocalClassifiers:
        """Every client's own."""
        return LocalClassifiers([own_classifier(server.tensors, client, self.task.classes) for client in range(self.task.clients)])


def own_classifiers(clients: Clients, probe_c: float) -> Tensors:
    """A probe on each member's rows, as tensors whose names begin with the client's number."""
    rows = zip(clients.members, clients.x, clients.y, strict=True)
    fitted = {client: fit_probe(x.cpu().numpy(), y.cpu().numpy(), probe_c) for client, x, y in rows}
    return {f"{client}.{name}": value for client, probe in fitted.items() for name, value in probe_tensors(probe).items()}


def keep(server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
    """What clients keep is kept for the evaluation."""
    server.tensors |= total
    return {}


def own_classifier(tensors: Tensors, client: int, classes: int) -> ProbeClassifier:
    """A client's classifier among :func:`own_classifiers`."""
    prefix = f"{client}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return ProbeClassifier(probe_of(own), classes)
