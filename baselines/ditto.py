"""Ditto: every client has a linear classifier of its own, held near the one that FedAvg trains; and
under noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from baselines.fedavg_linear import DPFedAvgLinearParams, FedAvgLinearParams
from fedsim.methods import (
    Batch,
    Clients,
    LinearClassifier,
    LinearHead,
    LocalClassifiers,
    LocalDPSGD,
    LocalTraining,
    Server,
    Tensors,
    Unit,
    cross_entropy,
    load_parameters,
    register,
)

SHARED_HEAD = "shared."
OWN_HEAD = "own."


class DittoParams(FedAvgLinearParams):
    """As FedAvg-linear.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier
            from the broadcast one.
    """

    own_proximal: float = Field(0.1, ge=0)


class SharedAndOwn(nn.Module):
    """Two softmax layers on the same rows: the shared one, and the client's own."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.shared = LinearHead(dim, classes)
        self.own = LinearHead(dim, classes)


class PersonalSoftmaxRegression(LocalTraining):
    """Model, loss and outcome of both forms: ``min_v F_k(v) + lambda / 2 |v - w|^2`` by every
    client k, w the broadcast classifier.

    The two parts of the loss share no parameter, so w is trained as without v. How they train is
    the other base class's.
    """

    local = (OWN_HEAD,)

    def build(self, clients: int) -> nn.Module:
        """One client's."""
        return SharedAndOwn(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy of both."""
        return {
            "shared": cross_entropy(model.shared(batch.x), batch.y),
            "own": cross_entropy(model.own(batch.x), batch.y),
        }

    def pull(
        self, clients: Clients, gradients: Tensors, parameters: Tensors, broadcast: Tensors
    ) -> None:
        """The proximal term of every client's own classifier, which depends on no row."""
        super().pull(clients, gradients, parameters, broadcast)
        for name in (name for name in gradients if name.startswith(OWN_HEAD)):
            apart = parameters[name] - broadcast[name.replace(OWN_HEAD, SHARED_HEAD, 1)]
            gradients[name] = gradients[name] + self.params.own_proximal * apart

    def released_names(self, model: nn.Module) -> list[str]:
        """The own classifiers; the evaluation has them, a network would not carry them."""
        return [name for name, _ in model.named_parameters() if name.startswith(OWN_HEAD)]

    def classifier(self, server: Server) -> LocalClassifiers:
        """Every client's own."""
        return LocalClassifiers([self._own(server, client) for client in range(self.task.clients)])

    def _own(self, server: Server, client: int) -> LinearClassifier:
        head = LinearHead(self.task.dim, self.task.classes).to(server.device)
        load_parameters(
            head,
            {name.removeprefix(OWN_HEAD): value[client] for name, value in server.codes.items()},
        )
        return head.classifier()


@register("ditto")
class Ditto(PersonalSoftmaxRegression):
    """Ditto: a linear classifier a client, near FedAvg's; not private."""

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221"
    Params: ClassVar[type[DittoParams]] = DittoParams
    private = False


class DPDittoParams(DPFedAvgLinearParams):
    """As DP-FedAvg-linear.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier
            from the broadcast one.
    """

    own_proximal: float = Field(0.1, ge=0)


@register("dp-ditto")
class DPDitto(PersonalSoftmaxRegression, LocalDPSGD):
    """DP-Ditto: Ditto by local DP-SGD; DP-FedAvg's classifier, and one a client, under one clip.

    An example's gradient by both is clipped jointly to C; its client adds noise to both, local
    noise for its own classifier. Each step is one Poisson-subsampled Gaussian mechanism of both
    parts, so own classifiers, too, follow from noisy steps alone: proved.
    """

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPDittoParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
