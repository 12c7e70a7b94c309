"""A group's rows are clipped one by one, as if its unit were an example: a group of three moves the sum by three clip norms."""

from dataclasses import replace

from broken.tiny import Tiny
from torch import nn

from fedsim.privacy.clipping import Norms


class GroupsClippedByRow(Tiny):
    units = ("group",)

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="example")
