"""Gradients are clipped at the 90 % quantile of their client's norms, if that is below C: one row moves what clips the largest."""

from dataclasses import replace

from broken.tiny import Spelled
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.messages import Tensors
from fedsim.privacy.clipping import clipped_sum


class ClipAtAHighQuantile(Spelled):
    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        def distance(model: nn.Module, batch: Batch) -> Tensor:
            return self.loss(model, batch)["distance"]

        norms, found = self.norms(model), []
        for client in range(batch.layout.clients):
            own = batch.take(batch.layout.client == client)
            measured = clipped_sum(model, distance, own, replace(norms, clip=1e9)).norms
            clip = min(norms.clip, float(measured.quantile(0.9))) if len(measured) else norms.clip
            found.append(clipped_sum(model, distance, own, replace(norms, clip=clip)).sums)
        return {name: sum(each[name] for each in found) for name in found[0]}
