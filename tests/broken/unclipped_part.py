"""The bias is left out of the clip, and is sent like the rest."""

from dataclasses import replace

from broken.tiny import Tiny
from torch import nn

from fedsim.privacy.clipping import Norms


class UnclippedPart(Tiny):
    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), free=("prototypes.bias",))
