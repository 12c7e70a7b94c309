"""Ditto and DP-Ditto: every client has its own linear classifier, held near a shared one.

FedAvg trains the shared classifier. Ditto is not private. DP-Ditto trains both classifiers by local
DP-SGD.
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
"""The prefix of the parameter names of the shared classifier."""
OWN_HEAD = "own."
"""The prefix of the parameter names of a client's own classifier."""


class DittoParams(FedAvgLinearParams):
    """Parameters of Ditto: those of FedAvg-linear and the weight of the proximal term.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier
            from the broadcast one.
    """

    learning_rate: float = Field(0.002, gt=0)
    own_proximal: float = Field(1.0, ge=0)


class SharedAndOwn(nn.Module):
    """Two softmax layers on the same rows: the shared one and the client's own."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.shared = LinearHead(dim, classes)
        self.own = LinearHead(dim, classes)


class PersonalSoftmaxRegression(LocalTraining):
    """The model, the loss and the classifiers of Ditto and DP-Ditto.

    Every client k solves

        min_v F_k(v) + lambda / 2 |v - w|^2,

    where w is the broadcast classifier. The two parts of the loss share no parameter, so w is
    trained as it would be without v. Training is without noise, unless a subclass adds
    :class:`LocalDPSGD`.
    """

    local = (OWN_HEAD,)

    def build(self, clients: int) -> nn.Module:
        """Return the model of one client."""
        return SharedAndOwn(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the cross-entropy of both classifiers for each example, ``[N]``."""
        return {
            "shared": cross_entropy(model.shared(batch.x), batch.y),
            "own": cross_entropy(model.own(batch.x), batch.y),
        }

    def pull(
        self,
        clients: Clients,
        gradients: Tensors,
        parameters: Tensors,
        broadcast: Tensors,
    ) -> None:
        """Add the gradient of the own classifiers' proximal term, in place; it reads no row."""
        super().pull(clients, gradients, parameters, broadcast)
        for name in gradients:
            if name.startswith(OWN_HEAD):
                shared_name = name.replace(OWN_HEAD, SHARED_HEAD, 1)
                difference = parameters[name] - broadcast[shared_name]
                gradients[name] = gradients[name] + self.params.own_proximal * difference

    def released_names(self, model: nn.Module) -> list[str]:
        """Return the parameter names of the own classifiers, which the evaluation needs."""
        return [name for name, _ in model.named_parameters() if name.startswith(OWN_HEAD)]

    def classifier(self, server: Server) -> LocalClassifiers:
        """Return the own classifiers of all clients."""
        clients = range(self.task.clients)
        return LocalClassifiers([self._own_classifier(server, client) for client in clients])

    def _own_classifier(self, server: Server, client: int) -> LinearClassifier:
        head = LinearHead(self.task.dim, self.task.classes).to(server.device)
        parameters = {name: value[client] for name, value in server.codes.items()}
        load_parameters(head, parameters, OWN_HEAD)
        return head.classifier()


@register("ditto")
class Ditto(PersonalSoftmaxRegression):
    """Ditto: one linear classifier per client, near FedAvg's; not private."""

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221"
    Params: ClassVar[type[DittoParams]] = DittoParams
    private = False


class DPDittoParams(DPFedAvgLinearParams):
    """Parameters of DP-Ditto: those of DP-FedAvg-linear and the weight of the proximal term.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier
            from the broadcast one.
    """

    own_proximal: float = Field(0.1, ge=0)


@register("dp-ditto")
class DPDitto(PersonalSoftmaxRegression, LocalDPSGD):
    """DP-Ditto: Ditto by local DP-SGD, with one clip for both classifiers.

    The gradient of an example with respect to both classifiers is clipped jointly to C. The
    example's client adds noise to both parts. So each step is one Poisson-subsampled Gaussian
    mechanism. Both classifiers depend on the data only through such steps, so the guarantee is
    proved for the own classifiers too.
    """

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPDittoParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
