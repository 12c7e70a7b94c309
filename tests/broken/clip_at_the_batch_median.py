"""Gradients are clipped at the median of their norms, if that is below C: one row moves the clip norm of all."""

from dataclasses import replace

from broken.tiny import Spelled
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.messages import Tensors
from fedsim.privacy.clipping import clipped_sum


class ClipAtTheBatchMedian(Spelled):
    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        def distance(model: nn.Module, batch: Batch) -> Tensor:
            return self.loss(model, batch)["distance"]

        norms = self.norms(model)
        found = clipped_sum(model, distance, batch, norms).norms
        sent = found[found > 0]
        clip = min(norms.clip, float(sent.median())) if len(sent) else norms.clip
        return clipped_sum(model, distance, batch, replace(norms, clip=clip)).sums
