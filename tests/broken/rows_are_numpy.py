"""The generator answers with an array of numpy."""

from typing import Any

import torch
from broken.tiny import Prototypes, Tiny
from torch import Tensor

from fedsim.methods.messages import Server


class Arrays(Prototypes):
    def sample(self, labels: Tensor, stream: torch.Generator) -> Any:
        return super().sample(labels, stream).numpy()


class RowsAreNumpy(Tiny):
    def generator(self, server: Server) -> Prototypes:
        return Arrays(super().generator(server).rows)
