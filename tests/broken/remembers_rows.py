"""Its classifier centres a row at the mean of those that it was shown before, so one held-out row changes what others are taken for."""

from typing import Any

import torch
from broken.tiny import Classified
from torch import Tensor

from fedsim.methods.messages import Server


class RemembersRows(Classified):
    def classifier(self, server: Server) -> Any:
        return Remembering(super().classifier(server))


class Remembering:
    def __init__(self, known: Any) -> None:
        self.known, self.shown = known, list[Tensor]()

    def probabilities(self, x: Tensor) -> Tensor:
        self.shown.append(x)
        return self.known.probabilities(x - torch.cat(self.shown).mean(0))  # type: ignore[no-any-return]
