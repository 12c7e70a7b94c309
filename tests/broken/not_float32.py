"""The model has a parameter of another precision than the rows."""

from typing import Any

from broken.tiny import Tiny
from torch import nn


class Doubled(Tiny):
    def build(self, clients: int) -> nn.Module:
        return super().build(clients).double()


class HalfABias(Tiny):
    def build(self, clients: int) -> nn.Module:
        model: Any = super().build(clients)
        model["prototypes"].bias = nn.Parameter(model["prototypes"].bias.half())
        return model
