"""One unit changes a noised sum by more than the claimed bound: by the clip, by weights after it, or by what the clip is set by."""

import math
from dataclasses import replace
from typing import Any

import torch
from broken.tiny import Spelled, Tiny
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Claim


class UnclippedPart(Tiny):
    """The bias is left out of the clip, and is sent like the rest."""

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), free=("prototypes.bias",))


class BatchClippedAsOne(Tiny):
    """Each client's batch is clipped as one sample: what layer hooks make of a weight set that is generated once a batch."""

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="client")


class GroupsClippedByRow(Tiny):
    """A group's rows are clipped one by one, as if its unit were an example."""

    units = ("group",)

    def norms(self, model: nn.Module) -> Norms:
        return replace(super().norms(model), unit="example")


class SensitivityOfATenth(Tiny):
    """The author states a theorem, by a bound that is a tenth of what a row adds."""

    def claim(self) -> Claim:
        return "stated"

    def sensitivity(self) -> float:
        return self.clip() / 10


class FirstRowIsTheAnchor(Tiny):
    """Rows are told by their difference to their client's first row: without that one they are all other rows."""

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        return super().client_round(replace(clients, x=tuple(x - x[:1] / 2 for x in clients.x)), round_, broadcast)


class OneLabelCountsDouble(Spelled):
    """Rows of label 6 count twice, after the clip."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        twice = super().sums(model, batch.take(batch.y == 6))
        return {name: value + twice[name] for name, value in super().sums(model, batch).items()}


class DividesByStepsOfTenRows(Spelled):
    """A client divides by its number of batches of ten rows: the eleventh row halves what all others count."""

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.steps = [max(math.ceil(len(x) / 10), 1) for x in clients.x]
        return super().client_round(clients, round_, broadcast)

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        parts = [super(DividesByStepsOfTenRows, self).sums(model, batch.take(batch.layout.client == i)) for i in range(len(self.steps))]
        return {name: torch.stack([part[name] / n for part, n in zip(parts, self.steps, strict=True)]).sum(0) for name in parts[0]}


class ClipAtTheBatchMedian(Spelled):
    """Gradients are clipped at the median of their norms, if that is below C: one row moves the clip norm of all."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        found = self.clipped(model, batch, self.norms(model)).norms
        sent = found[found > 0]
        clip = min(self.clip(), float(sent.median())) if len(sent) else self.clip()
        return self.clipped(model, batch, replace(self.norms(model), clip=clip)).sums


class ClipAtAHighQuantile(Spelled):
    """Gradients are clipped at the 90 % quantile of their client's norms, if that is below C: one row moves what clips the largest."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        norms, found = self.norms(model), []
        for client in range(batch.layout.clients):
            own = batch.take(batch.layout.client == client)
            measured = self.clipped(model, own, replace(norms, clip=1e9)).norms
            clip = min(norms.clip, float(measured.quantile(0.9))) if len(measured) else norms.clip
            found.append(self.clipped(model, own, replace(norms, clip=clip)).sums)
        return {name: sum(each[name] for each in found) for name in found[0]}


class NoClipWhileTheMeanIsSmall(Spelled):
    """Nothing is clipped while the mean of the gradients' norms is below C."""

    def sums(self, model: nn.Module, batch: Batch) -> Tensors:
        found = self.clipped(model, batch, self.norms(model))
        if not len(found.norms) or float(found.norms.mean()) >= self.clip():
            return found.sums
        return self.clipped(model, batch, replace(self.norms(model), clip=math.inf)).sums


class StopsClippingLate(Spelled):
    """From round 50 of 300 on nothing is clipped."""

    units = ("example", "client")

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        self.is_late = round_.number >= 50
        return super().client_round(clients, round_, broadcast)

    def norms(self, model: nn.Module) -> Norms:
        norms = super().norms(model)
        return replace(norms, clip=math.inf) if getattr(self, "is_late", False) else norms


class ScaledByAConstant(Tiny):
    """Sound: rows are told in public units."""

    def scale(self, x: Tensor) -> Tensor:
        return torch.full((self.task.dim,), 4.0)

    def distance(self, model: Any, batch: Batch) -> Tensor:
        return super().distance(model, replace(batch, x=batch.x * self.scale(batch.x)))


START: list[Tensor] = []


class ScaledByTheFirstBatch(ScaledByAConstant):
    """In units of the spread of the first batch that the process saw, as ActNorm starts."""

    def scale(self, x: Tensor) -> Tensor:
        if not START and len(x) > 1:
            START.append(1 / (x.detach().std(0) + 0.1))
        return START[0] if START else super().scale(x)
