"""Three methods that train the evaluation's linear probe on real rows; none of them is private.

Local-only trains one probe per client. Centralised trains one probe on the rows of all clients.
FedLambda mixes each client's probe with the classifier of FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from baselines.fedavg_linear import FedAvgLinear
from fedsim.methods import (
    Algorithm,
    Clients,
    Interpolated,
    LinearClassifier,
    LocalClassifiers,
    Message,
    Params,
    Phase,
    ProbeClassifier,
    Release,
    Round,
    Server,
    Task,
    Tensors,
    best_weight,
    fit_linear,
    fit_probe,
    load_parameters,
    probe_of,
    probe_tensors,
    register,
)

HELD_OUT = 5
"""One in this many rows of a client is held out.

The held-out rows decide the weight of the client's own classifier against the shared one.
"""


@register("local-only")
class LocalOnlyLinear(Algorithm):
    """Local-only, the floor: every client's own linear probe; not private.

    Nothing is shared, and the score is the mean over clients. The reference of the same name is
    usually higher: its probes weigh classes evenly and use the best of several penalties.
    """

    source = "the usual floor"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of one round."""
        return (Phase(Release("classifiers", 1.0, 1), self.client_round, keep, self.broadcast),)

    def build(self, clients: int) -> nn.Module:
        """Return an empty model: nothing is shared."""
        return nn.Module()

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        """Return every client's classifier; it stays at the client, so no byte counts as sent."""
        return clients.send(fit_own_probes(clients, self.task.probe_c), uplink_bytes=0)

    def classifier(self, server: Server) -> LocalClassifiers:
        """Return the classifiers of all clients."""
        return LocalClassifiers(own_classifiers(server.tensors, self.task))


def fit_own_probes(clients: Clients, probe_c: float) -> Tensors:
    """Return a probe of each client's rows, as tensors ``<client>.<name>``.

    Raises:
        ValueError: a client has no row, or a row is not finite.
    """
    tensors = Tensors()
    for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
        probe = fit_probe(x.cpu().numpy(), y.cpu().numpy(), probe_c)
        for name, value in probe_tensors(probe).items():
            tensors[f"{client}.{name}"] = value
    return tensors


def keep(
    server: Server,
    round_: Round,
    total: Tensors,
) -> Mapping[str, float]:
    """Store the clients' tensors at the server, where the evaluation reads them."""
    server.tensors |= total
    return {}


def own_classifiers(tensors: Tensors, task: Task) -> list[ProbeClassifier]:
    """Return the classifiers of all clients from the tensors of :func:`fit_own_probes`."""
    classifiers = []
    for client in range(task.clients):
        prefix = f"{client}."
        client_tensors = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        classifiers.append(ProbeClassifier(probe_of(client_tensors), task.classes))
    return classifiers


@register("centralised")
class Centralised(Algorithm):
    """Centralised: one linear probe on the rows of all clients; not private.

    The probe has the default penalty, and all rows have the same weight.
    """

    source = "the usual upper reference"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of one round."""
        return (
            Phase(Release("rows", 1.0, 1), self.client_round, self.server_step, self.broadcast),
        )

    def build(self, clients: int) -> nn.Module:
        """Return an empty model: nothing is trained in rounds."""
        return nn.Module()

    def copies_of_examples(self) -> int:
        """Return 4: the rows as they are sent, joined, and twice in double precision."""
        return 4

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        """Return every client's rows and labels."""
        rows = {f"x.{client}": x for client, x in zip(clients.members, clients.x, strict=True)}
        labels = {f"y.{client}": y for client, y in zip(clients.members, clients.y, strict=True)}
        sent = rows | labels
        size = sum(value.nbytes for value in sent.values())
        return clients.send(sent, uplink_bytes=size)

    def server_step(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Mapping[str, float]:
        """Train the probe on the rows of all clients."""
        clients = range(self.task.clients)
        x = torch.cat([total[f"x.{client}"] for client in clients]).cpu().numpy()
        y = torch.cat([total[f"y.{client}"] for client in clients]).cpu().numpy()
        server.tensors |= probe_tensors(fit_probe(x, y, self.task.probe_c))
        return {}

    def classifier(self, server: Server) -> ProbeClassifier:
        """Return the probe that was trained on the rows of all clients."""
        return ProbeClassifier(probe_of(server.tensors), self.task.classes)


@register("fedlambda")
class FedLambda(FedAvgLinear):
    """FedLambda: each client's classifier mixed with FedAvg's; not private.

    Lambda is the weight of the client's own classifier in the mixture. It is chosen by the accuracy
    on a fifth of the client's rows. The method is kNN-Per (Marfoq et al. 2022) with a linear local
    model, as in the baseline of Di Salvo et al. 2025 (arXiv 2507.02671). There, one lambda serves
    all clients; here, each client has its own.
    """

    source = "Marfoq et al. 2022, arXiv 2111.09360"

    def phases(self) -> tuple[Phase, ...]:
        """Return FedAvg's rounds, then one in which clients train their own classifiers."""
        last = Release("local classifiers", 1.0, 1, main=False)
        return (*super().phases(), Phase(last, self.train_own, keep, self.broadcast))

    def train_own(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        """Return every client's classifier and lambda; both stay there, so no byte is counted."""
        model: Any = clients.model
        load_parameters(model, broadcast)
        probe_c = self.task.probe_c
        tensors = fit_own_probes(clients, probe_c)
        on_device = model.classifier()
        shared = LinearClassifier(on_device.weight.cpu(), on_device.bias.cpu())
        for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
            weight = held_out_weight(
                x.cpu().numpy(), y.cpu().numpy(), shared, self.task.classes, probe_c
            )
            tensors[f"lambda.{client}"] = torch.tensor(weight)
        return clients.send(tensors, uplink_bytes=0)

    def classifier(self, server: Server) -> LocalClassifiers:
        """Return the mixed classifiers of all clients."""
        model: Any = server.model
        shared = model.classifier()
        mixed = []
        for client, local in enumerate(own_classifiers(server.tensors, self.task)):
            weight = float(server.tensors[f"lambda.{client}"])
            mixed.append(Interpolated(local, shared, weight))
        return LocalClassifiers(mixed)


def held_out_weight(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    shared: LinearClassifier,
    classes: int,
    probe_c: float,
) -> float:
    """Return the weight of a client's own classifier that is best on a held-out fifth of its rows.

    For this choice, a classifier is trained on the other rows. A client with fewer than two rows
    cannot hold out one and train on another, so its weight is 0.

    Args:
        x: the client's rows ``[n, d]``.
        y: their labels ``[n]``.
        shared: the classifier to mix with.
        classes: the number of classes C.
        probe_c: the inverse strength of the probe's penalty.
    """
    if len(y) < 2:
        return 0.0
    # A client with fewer than HELD_OUT rows holds out its last row.
    is_held_out = np.arange(len(y)) % HELD_OUT == min(HELD_OUT, len(y)) - 1
    local = fit_linear(x[~is_held_out], y[~is_held_out], classes, probe_c)
    rows = torch.from_numpy(x[is_held_out])
    labels = torch.from_numpy(y[is_held_out])
    importance = torch.ones(len(labels))
    return best_weight(
        local.probabilities(rows),
        shared.probabilities(rows),
        labels,
        importance,
    )
