"""FedLambda: each client's classifier mixed with FedAvg's; both are linear; not private."""

from __future__ import annotations

from typing import Any

import torch

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
    held_out_weight,
    load_parameters,
    register,
)


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
