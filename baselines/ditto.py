"""Ditto and DP-Ditto: every client has its own linear classifier, held near a shared one.

The shared classifier is trained by FedAvg.
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
"""The prefix of the names of the shared classifier's parameters."""
OWN_HEAD = "own."
"""The prefix of the names of the own classifier's parameters."""


class DittoParams(FedAvgLinearParams):
    """Parameters of Ditto: those of FedAvg-linear and the weight of the proximal term.

    Attributes:
        own_proximal: lambda, the weight of half the squared distance of a client's own classifier
            from the broadcast one.
    """

    own_proximal: float = Field(0.1, ge=0)


class SharedAndOwn(nn.Module):
    """Two softmax layers on the same rows: the shared one and the client's own."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.shared = LinearHead(dim, classes)
        self.own = LinearHead(dim, classes)


class PersonalSoftmaxRegression(LocalTraining):
    """The model, the loss and the classifiers of both forms.

    Every client k solves

        min_v F_k(v) + lambda / 2 |v - w|^2,

    where w is the broadcast classifier. The two parts of the loss share no parameter, so w is
    trained as it would be without v. The other base class decides how they are trained.
    """

    local = (OWN_HEAD,)

    def build(self, clients: int) -> nn.Module:
        """Returns the model of one client."""
        return SharedAndOwn(self.task.dim, self.task.classes)

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Returns the cross-entropy of both classifiers for each example, ``[N]``."""
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
        """Adds the proximal term of the own classifiers, which depends on no row, in place."""
        super().pull(clients, gradients, parameters, broadcast)
        for name in gradients:
            if name.startswith(OWN_HEAD):
                shared_name = name.replace(OWN_HEAD, SHARED_HEAD, 1)
                difference = parameters[name] - broadcast[shared_name]
                gradients[name] = gradients[name] + self.params.own_proximal * difference

    def released_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the own classifiers, which the evaluation reads at the clients."""
        return [name for name, _ in model.named_parameters() if name.startswith(OWN_HEAD)]

    def classifier(self, server: Server) -> LocalClassifiers:
        """Returns the own classifiers of all clients."""
        clients = range(self.task.clients)
        return LocalClassifiers([self._own_classifier(server, client) for client in clients])

    def _own_classifier(self, server: Server, client: int) -> LinearClassifier:
        head = LinearHead(self.task.dim, self.task.classes).to(server.device)
        parameters = {
            name.removeprefix(OWN_HEAD): value[client] for name, value in server.codes.items()
        }
        load_parameters(head, parameters)
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

    An example's gradient by both classifiers is clipped jointly to C. Its client adds noise to
    both, local noise for its own classifier. Each step is one Poisson-subsampled Gaussian mechanism
    of both parts, so own classifiers, too, depend on noisy steps alone, and the guarantee is
    proved.
    """

    source = "Li, Hu, Beirami and Smith 2021, arXiv 2012.04221; Abadi et al. 2016, arXiv 1607.00133"
    Params = DPDittoParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
