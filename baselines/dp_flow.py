"""DP-flow: a class-conditional rectified flow whose velocity is trained by DP-SGD.

A rectified flow moves noise to data along paths that are as straight as possible (Liu, Gong and Liu
2023, arXiv 2209.03003). A network is trained to predict the direction of the line from a draw of
noise to an example, at a random point of the line. Following its predictions from new noise gives
new examples.

Three things differ here. The network is a small MLP on embeddings that are shifted and scaled by
released estimates of their mean and spread (*released coordinates*). It starts as the velocity of
the flow from N(0, I) to itself. The flow is not trained again on its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    DPSGD,
    Batch,
    DPSGDParams,
    Server,
    ZeroLinear,
    normal,
    one_hot,
    register,
)

TIME_FEATURES = 8
"""The number of cosines of the time t that the network reads."""


class DPFlowParams(DPSGDParams):
    """Parameters of DP-flow.

    The defaults of ``rounds``, ``learning_rate`` and ``hidden`` had the best score of ten settings
    on digits. No epsilon counts that choice.

    Attributes:
        clip: C, the clip norm. Nearly every gradient is longer, so nearly all examples count alike.
        draws: the number of draws of noise and time for each example in a step. More draws make the
            gradient of an example less random, and cost time but no epsilon.
        hidden: the widths of the network's hidden layers.
        solver_steps: the number of steps of Heun's method from noise to a synthetic example.
    """

    rounds: int = Field(100, ge=1)
    clip: float = Field(0.1, gt=0)
    learning_rate: float = Field(5e-3, gt=0)
    precondition: float = Field(0.15, ge=0, lt=1)
    draws: int = Field(4, ge=1)
    hidden: tuple[int, ...] = (128,)
    solver_steps: int = Field(20, ge=1)


class Velocity(nn.Module):
    """The velocity of the flow from standard normal noise to the rows of class y.

    At the point x and the time t it is

        v(x, t, y) = ((2 t - 1) x + (1 - t) f(x, t, y)) / (t^2 + (1 - t)^2)

    with an MLP f. This is exact for rows from N(m, I) if f is their mean m. The last layer of f
    starts at zero, so v starts as the velocity of a flow from N(0, I) to itself.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        self.classes = classes
        widths = [dim + classes + TIME_FEATURES, *hidden]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        # The label is an input of the last layer, too, so that f has a prototype per class.
        self.last = ZeroLinear(widths[-1] + classes, dim)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
    ) -> Tensor:
        """Return the velocities ``[..., d]``.

        Args:
            x: points ``[..., d]``.
            t: their times in 0 to 1, ``[..., 1]``.
            y: their labels ``[...]``.
        """
        label = one_hot(y, self.classes)
        frequencies = math.pi * torch.arange(TIME_FEATURES, device=x.device)
        scale = math.sqrt(x.shape[-1])  # the norm of x is about this
        time = scale / math.sqrt(TIME_FEATURES) * torch.cos(t * frequencies)
        h = torch.cat([x, scale * label, time], -1)
        for layer in self.layers:
            h = F.silu(layer(h))
        f = self.last(torch.cat([h, math.sqrt(h.shape[-1]) * label], -1))
        numerator: Tensor = (2 * t - 1) * x + (1 - t) * f
        return numerator / (t.square() + (1 - t).square())


class FlowGenerator(NamedTuple):
    """A generator that follows the velocity from noise to a row, by Heun's method.

    Attributes:
        velocity: the velocity of rows that are multiplied by sqrt(d).
        dim: the dimension d of a row.
        steps: the number of steps.
    """

    velocity: nn.Module
    dim: int
    steps: int

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic rows ``[n, d]``, in the flow's coordinates, for labels ``[n]``."""
        x = normal((len(labels), self.dim), stream, labels)
        step_size = 1 / self.steps
        with torch.no_grad():
            for step in range(self.steps):
                time = x.new_full((len(x), 1), step * step_size)
                first = self.velocity(x, time, labels)
                second = self.velocity(x + step_size * first, time + step_size, labels)
                x = x + step_size * (first + second) / 2
        return x / math.sqrt(self.dim)


@register("dp-flow")
class DPFlow(DPSGD):
    """The rectified flow under federated DP-SGD, in released coordinates.

    Rows in coordinates are multiplied by sqrt(d), so that their entries are of order one, as those
    of the noise are.
    """

    source = "Liu, Gong and Liu 2023, arXiv 2209.03003"
    Params = DPFlowParams

    def build(self, clients: int) -> nn.Module:
        """Return the network of the velocity, which all clients share."""
        return Velocity(self.task.dim, self.task.classes, self.params.hidden)

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of an example's draws: starts of lines, and numbers that give t."""
        count = self.params.draws
        return {"noise": (count, self.task.dim), "time": (count, 1)}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the squared error of the velocity for each example, ``[N]``.

        It is the mean over draws and features of

            (v(x_t, t, y) - (x_1 - x_0))^2    with    x_t = (1 - t) x_0 + t x_1,

        where x_1 is the example, x_0 is from N(0, I), and t is uniform between 0 and 1.
        """
        x_1 = math.sqrt(self.task.dim) * batch.x.unsqueeze(1)  # [N, 1, d]
        x_0 = batch.draws["noise"]  # [N, draws, d]
        # The distribution function of a normal number, taken at that number, is uniform.
        t = torch.special.ndtr(batch.draws["time"])  # [N, draws, 1]
        labels = batch.y.unsqueeze(1).expand(t.shape[:2])
        x_t = (1 - t) * x_0 + t * x_1
        error = model(x_t, t, labels) - (x_1 - x_0)
        return {"velocity": error.square().mean((1, 2))}

    def generator(self, server: Server) -> FlowGenerator:
        """Return the generator, whose network has the mean of the weights over later rounds."""
        return FlowGenerator(server.model, self.task.dim, self.params.solver_steps)
