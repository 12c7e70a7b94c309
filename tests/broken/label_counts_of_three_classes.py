"""Label counts are told for three classes, whatever their number is."""

import torch
from broken.tiny import Tiny
from torch import Tensor

from fedsim.methods.messages import Server


class LabelCountsOfThreeClasses(Tiny):
    def label_counts(self, server: Server) -> Tensor:
        return torch.ones(3)
