"""The evaluation's linear probe, not private: of each client alone, the floor; of all rows pooled;
beside FedAvg's (FedLambda).
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
"""Of so many rows one is held out, to choose on it how much weight a client's own classifier gets
beside the shared one.
"""


@register("local-only")
class LocalOnlyLinear(Algorithm):
    """Local-only, the floor: every client's own linear probe; nothing is shared, and the score is
    the mean of theirs; not private.

    The reference of this name has probes of its own, which weigh classes evenly, at the best of
    several penalties: it is usually higher.
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
        return LocalClassifiers(
            [
                own_classifier(server.tensors, client, self.task.classes)
                for client in range(self.task.clients)
            ]
        )


def own_classifiers(clients: Clients, probe_c: float) -> Tensors:
    """A probe on each member's rows, as tensors whose names begin with the client's number."""
    rows = zip(clients.members, clients.x, clients.y, strict=True)
    fitted = {client: fit_probe(x.cpu().numpy(), y.cpu().numpy(), probe_c) for client, x, y in rows}
    return {
        f"{client}.{name}": value
        for client, probe in fitted.items()
        for name, value in probe_tensors(probe).items()
    }


def keep(server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
    """What clients keep is kept for the evaluation."""
    server.tensors |= total
    return {}


def own_classifier(tensors: Tensors, client: int, classes: int) -> ProbeClassifier:
    """A client's classifier among :func:`own_classifiers`."""
    prefix = f"{client}."
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    return ProbeClassifier(probe_of(own), classes)


@register("centralised")
class Centralised(Algorithm):
    """Centralised: one linear probe on the rows of all clients; at its own strength, with the
    classes' natural shares; not private.
    """

    source = "the usual upper reference"
    Params = Params
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (
            Phase(Release("rows", 1.0, 1), self.client_round, self.server_step, self.broadcast),
        )

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
        x, y = (
            torch.cat([total[f"{part}.{client}"] for client in range(self.task.clients)])
            .cpu()
            .numpy()
            for part in ("x", "y")
        )
        server.tensors |= probe_tensors(fit_probe(x, y, self.task.probe_c))
        return {}

    def classifier(self, server: Server) -> ProbeClassifier:
        """The pooled one."""
        return ProbeClassifier(probe_of(server.tensors), self.task.classes)


@register("fedlambda")
class FedLambda(FedAvgLinear):
    """FedLambda: each client's classifier mixed with FedAvg's; its share lambda is the best on a
    fifth of the client's rows; not private.

    kNN-Per (Marfoq et al. 2022) with a linear local model, as the baseline of Di Salvo et al. 2025
    (arXiv 2507.02671); there one lambda serves all clients, here each has its own.
    """

    source = "Marfoq et al. 2022, arXiv 2111.09360"

    def phases(self) -> tuple[Phase, ...]:
        """FedAvg's rounds, then one in which clients train their own."""
        last = Release("local classifiers", 1.0, 1, main=False)
        return (*super().phases(), Phase(last, self.train_own, keep, self.broadcast))

    def train_own(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's classifier and lambda; they stay with the client, so a network would carry
        nothing.
        """
        model: Any = clients.model
        load_parameters(model, broadcast)
        own = own_classifiers(clients, self.task.probe_c)
        c = self.task.probe_c
        shared = LinearClassifier(*(value.cpu() for value in vars(model.classifier()).values()))
        for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
            own[f"lambda.{client}"] = torch.tensor(
                held_out_weight(x.cpu().numpy(), y.cpu().numpy(), shared, self.task.classes, c)
            )
        return clients.send(own, uplink_bytes=0)

    def classifier(self, server: Server) -> LocalClassifiers:
        """Every client's interpolation."""
        model: Any = server.model
        shared = model.classifier()
        tensors = server.tensors
        own = [
            own_classifier(tensors, client, self.task.classes)
            for client in range(self.task.clients)
        ]
        return LocalClassifiers(
            [
                Interpolated(each, shared, float(tensors[f"lambda.{k}"]))
                for k, each in enumerate(own)
            ]
        )


def held_out_weight(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    shared: LinearClassifier,
    classes: int,
    probe_c: float,
) -> float:
    """The best weight of a client's own classifier on a fifth of its rows, which the classifier
    that is tried there did not see.

    Of rows ``[n, d]`` with labels ``[n]`` and what it is interpolated with. A client with one row
    has nothing to try it on: 0.
    """
    if len(y) < 2:
        return 0.0
    kept = np.arange(len(y)) % HELD_OUT == min(HELD_OUT, len(y)) - 1  # of few rows one
    tried = fit_linear(x[~kept], y[~kept], classes, probe_c)
    rows = torch.from_numpy(x[kept])
    ones = torch.ones(int(kept.sum()))
    return best_weight(
        tried.probabilities(rows), shared.probabilities(rows), torch.from_numpy(y[kept]), ones
    )
