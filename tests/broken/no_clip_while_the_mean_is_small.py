"""Nothing is clipped while the mean of the gradients' norms is below C."""

import math
from dataclasses import replace

from broken.tiny import Spelled
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.messages import Tensors
from fedsim.privacy.clipping import clipped_sum


class NoClipWhileTheMeanIsSmall(Spelled):
    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        def distance(model: nn.Module, batch: Batch) -> Tensor:
            return self.loss(model, batch)["distance"]

        found = clipped_sum(model, distance, batch, self.norms(model))
        if not len(found.norms) or float(found.norms.mean()) >= self.clip():
            return found.sums
        return clipped_sum(model, distance, batch, replace(self.norms(model), clip=math.inf)).sums
