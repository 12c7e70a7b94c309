"""DP-SCAFFOLD: local DP-SGD with control variates; softmax regression, no generator.

A local step of client k goes along

    g - c_k + c

where g is the noised mean of clipped gradients, and the control variates c_k and c correct the
drift of the client. In a round, K steps of rate eta take the client from the broadcast parameters x
to y_k. Its control variate then becomes the mean of its noised gradients in the round,

    c_k - c + (x - y_k) / (K eta).

The client sends its update and the change of c_k, and the server adds the mean change to c. These
messages are post-processing of noisy steps. Control variates start at 0: the paper's warm start is
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
"""The prefix of the names of control variates."""


class DPScaffoldParams(DPFedAvgLinearParams):
    """Parameters of DP-SCAFFOLD.

    Attributes:
        learning_rate: eta, the rate of a local step of plain SGD.
        clip: C, the clip norm of one example's gradient.
    """

    learning_rate: float = Field(0.5, gt=0)
    clip: float = Field(1.0, gt=0)


class Scaffold(LocalDPSGD):
    """Local DP-SGD with control variates, which are sent with the shared parameters.

    A subclass supplies model and loss.
    """

    source = "DP-SCAFFOLD: Noble, Bellet and Dieuleveut 2022, arXiv 2111.09278"
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    def initial_server(self, seeds: Seeds) -> Server:
        """Return the server before the first round, with c = 0."""
        server = super().initial_server(seeds)
        for name, value in self.broadcast(server).items():
            server.tensors[f"{CONTROL}{name}"] = torch.zeros_like(value)
        return server

    def broadcast(self, server: Server) -> Tensors:
        """Return the shared parameters and c."""
        controls = {
            name: value for name, value in server.tensors.items() if name.startswith(CONTROL)
        }
        return super().broadcast(server) | controls

    def start_clients(self, clients: Clients) -> None:
        """Start the clients, with every c_k = 0."""
        super().start_clients(clients)
        count = len(clients.members)
        for name, value in clients.model.named_parameters():
            if not name.startswith(self.local):
                clients.state[f"{CONTROL}{name}"] = value.new_zeros(count, *value.shape)

    def stacked(self, clients: Clients, broadcast: Tensors) -> tuple[Tensors, Tensors]:
        """Return the parameters with which members start a round, without control variates."""
        parameters = {
            name: value for name, value in broadcast.items() if not name.startswith(CONTROL)
        }
        return super().stacked(clients, parameters)

    def pull(
        self,
        clients: Clients,
        gradients: Tensors,
        parameters: Tensors,
        broadcast: Tensors,
    ) -> None:
        """Correct the drift of every client's steps, in place."""
        super().pull(clients, gradients, parameters, broadcast)
        for name in gradients:
            control = f"{CONTROL}{name}"
            if control in broadcast:
                gradients[name] = gradients[name] + broadcast[control] - clients.state[control]

    def local_step(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: Tensors,
    ) -> None:
        """Take a step of plain SGD, in place, since control variates have the units of gradients.

        Adam, the default of local steps, would rescale gradients.
        """
        for name, gradient in gradients.items():
            parameters[name].sub_(gradient, alpha=self.params.learning_rate)

    def updates(
        self,
        clients: Clients,
        shared: Tensors,
        broadcast: Tensors,
        takes_part: Tensor,
    ) -> Tensors:
        """Return the clients' updates and the changes of their control variates.

        A client that takes no part keeps its control variate.
        """
        sent = super().updates(clients, shared, broadcast, takes_part)
        path_length = self.params.local_steps * self.params.learning_rate  # K eta
        for name, update in list(sent.items()):
            control = f"{CONTROL}{name}"
            change = -broadcast[control] - update / path_length
            active = takes_part.view(-1, *[1] * (change.dim() - 1))  # 1 or 0, [K, 1, ...]
            clients.state[control] += active * change
            # The server divides by the number of clients that are expected to take part, but c is
            # the mean over all clients.
            sent[control] = self.params.client_rate * change
        return sent


@register("dp-scaffold")
class DPScaffold(SoftmaxRegression, Scaffold):
    """Softmax regression under DP-SCAFFOLD."""

    Params = DPScaffoldParams
