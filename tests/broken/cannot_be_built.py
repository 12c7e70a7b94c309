"""Layers of a size that does not exist."""

from broken.tiny import Tiny
from torch import nn


class CannotBeBuilt(Tiny):
    def build(self, clients: int) -> nn.Module:
        return nn.ModuleDict({"prototypes": nn.Linear(self.task.classes, -self.task.dim)})
