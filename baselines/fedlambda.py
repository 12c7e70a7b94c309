"""FedLambda: each client's classifier mixed with FedAvg's; both are linear; not private."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.fedavg_linear import FedAvgLinear
from baselines.local_only import keep, own_classifier, own_classifiers
from fedsim.methods import (
    Clients,
    Interpolated,
    LinearClassifier,
    LocalClassifiers,
    Message,
    Phase,
    Release,
    Round,
    Server,
    Tensors,
    best_weight,
    fit_linear,
    load_parameters,
    register,
)

HELD_OUT = 5
"""Of so many rows one is held out, to choose on it how much weight a client's own classifier gets beside the shared one."""


@register("fedlambda")
class FedLambda(FedAvgLinear):
    """FedAvg's classifier, then lambda * local + (1 - lambda) * global a client, lambda the best on a fifth of the client's rows.

    kNN-Per (Marfoq et al. 2022) with a linear local model, as the baseline of Di Salvo et al. 2025 (arXiv 2507.02671); there one lambda
    serves all clients, here each has its own.
    """

    source = "Marfoq et al. 2022, arXiv 2111.09360"

    def phases(self) -> tuple[Phase, ...]:
        """FedAvg's rounds, then one in which clients train their own."""
        last = Release("local classifiers", 1.0, 1, main=False)
        return (*super().phases(), Phase(last, self.train_own, keep, self.broadcast))

    def train_own(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's classifier and lambda; they stay with the client, so a network would carry nothing."""
        model: Any = clients.model
        load_parameters(model, broadcast)
        own, c = own_classifiers(clients, self.task.probe_c), self.task.probe_c
        shared = LinearClassifier(*(value.cpu() for value in vars(model.classifier()).values()))
        for client, x, y in zip(clients.members, clients.x, clients.y, strict=True):
            own[f"lambda.{client}"] = torch.tensor(held_out_weight(x.cpu().numpy(), y.cpu().numpy(), shared, self.task.classes, c))
        return clients.send(own, uplink_bytes=0)

    def classifier(self, server: Server) -> LocalClassifiers:
        """Every client's interpolation."""
        model: Any = server.model
        shared, tensors = model.classifier(), server.tensors
        own = [own_classifier(tensors, client, self.task.classes) for client in range(self.task.clients)]
        return LocalClassifiers([Interpolated(each, shared, float(tensors[f"lambda.{k}"])) for k, each in enumerate(own)])


def held_out_weight(x: NDArray[np.float32], y: NDArray[np.int64], shared: LinearClassifier, classes: int, probe_c: float) -> float:
    """The best weight of a client's own classifier on a fifth of its rows, which the classifier that is tried there did not see.

    Of rows ``[n, d]`` with labels ``[n]`` and what it is interpolated with. A client with one row has nothing to try it on: 0.
    """
    if len(y) < 2:
        return 0.0
    kept = np.arange(len(y)) % HELD_OUT == min(HELD_OUT, len(y)) - 1  # of few rows one
    tried = fit_linear(x[~kept], y[~kept], classes, probe_c)
    rows, ones = torch.from_numpy(x[kept]), torch.ones(int(kept.sum()))
    return best_weight(tried.probabilities(rows), shared.probabilities(rows), torch.from_numpy(y[kept]), ones)
