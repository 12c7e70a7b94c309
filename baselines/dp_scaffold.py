"""DP-SCAFFOLD: local DP-SGD with control variates; on a softmax layer, whose steps they correct; no
generator.

A local step goes along ``g - c_k + c``, with g the noised mean of clipped gradients. After K steps
client k's control variate becomes the mean of its noised gradients, ``c_k - c + (x - y_k) / (K
eta)``; the client sends its update and the change of c_k, and the server adds the mean change to c.
All of it is post-processing of noisy steps. Control variates start at 0: the paper's warm start is
left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.fedavg_linear import DPFedAvgLinearParams, SoftmaxRegression
from fedsim.methods import Clients, LocalDPSGD, Seeds, Server, Tensors, Unit, register

CONTROL = "control."


class DPScaffoldParams(DPFedAvgLinearParams):
    """Parameters of DP-SCAFFOLD.

    Attributes:
        learning_rate: eta, of a local step of plain SGD.
    """

    learning_rate: float = Field(0.5, gt=0)


class Scaffold(LocalDPSGD):
    """Local DP-SGD with control variates, which travel with the shared parameters; a subclass
    supplies model and loss.
    """

    source = "DP-SCAFFOLD: Noble, Bellet and Dieuleveut 2022, arXiv 2111.09278"
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    def initial_server(self, seeds: Seeds) -> Server:
        """With c = 0."""
        server = super().initial_server(seeds)
        server.tensors |= {
            f"{CONTROL}{name}": torch.zeros_like(value)
            for name, value in self.broadcast(server).items()
        }
        return server

    def broadcast(self, server: Server) -> Tensors:
        """The shared parameters and c."""
        return super().broadcast(server) | {
            name: value for name, value in server.tensors.items() if name.startswith(CONTROL)
        }

    def start_clients(self, clients: Clients) -> None:
        """With every c_k = 0."""
        super().start_clients(clients)
        for name, value in clients.model.named_parameters():
            if not name.startswith(self.local):
                clients.state[f"{CONTROL}{name}"] = value.new_zeros(
                    len(clients.members), *value.shape
                )

    def stacked(self, clients: Clients, broadcast: Tensors) -> tuple[Tensors, Tensors]:
        """What is trained; control variates are not."""
        return super().stacked(
            clients,
            {name: value for name, value in broadcast.items() if not name.startswith(CONTROL)},
        )

    def pull(
        self, clients: Clients, gradients: Tensors, parameters: Tensors, broadcast: Tensors
    ) -> None:
        """Correct the drift of every client's steps."""
        for name in gradients:
            if (control := f"{CONTROL}{name}") in broadcast:
                gradients[name] = gradients[name] + broadcast[control] - clients.state[control]

    def local_step(self, parameters: Tensors, gradients: Tensors, state: Tensors) -> None:
        """SGD's: control variates are in units of gradients."""
        for name, gradient in gradients.items():
            parameters[name].sub_(gradient, alpha=self.params.learning_rate)

    def updates(
        self, clients: Clients, shared: Tensors, broadcast: Tensors, takes_part: Tensor
    ) -> Tensors:
        """Updates, and changes of the control variates as the mean over all clients has them; who
        takes no part keeps its own.
        """
        sent = super().updates(clients, shared, broadcast, takes_part)
        for name, update in list(sent.items()):
            control = f"{CONTROL}{name}"
            change = -broadcast[control] - update / (
                self.params.local_steps * self.params.learning_rate
            )
            clients.state[control] += takes_part.view(-1, *[1] * (change.dim() - 1)) * change
            # the server divides by the clients that are expected to take part
            sent[control] = self.params.client_rate * change
        return sent


@register("dp-scaffold")
class DPScaffold(SoftmaxRegression, Scaffold):
    """Softmax regression under DP-SCAFFOLD."""

    Params = DPScaffoldParams
