"""Algorithms that train locally by DP-SGD and average: every local step of a client is private.

For ``unit: example`` a local step draws a Poisson sample of the client's rows, clips every example's gradient by all of the client's
parameters to C and adds the client's own noise (Abadi et al. 2016, arXiv 1607.00133), for any trust: the client's message is a
function of noisy steps. For ``unit: group`` the rows of a group are drawn, summed and clipped together. For ``unit: client`` the clipped
updates get the noise, not the local steps, as in :mod:`fedsim.methods.local_training`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.device import to_device
from fedsim.methods.clients import Clients
from fedsim.methods.local_training import LocalTraining, LocalTrainingParams, weighted_sum
from fedsim.methods.messages import Diagnostic, Message, Round, Tensors
from fedsim.methods.parameters import load_parameters
from fedsim.methods.per_example import check_loss
from fedsim.methods.phase import Phase
from fedsim.methods.returns import loss_parts
from fedsim.privacy.clipping import EngineName, Norms, clipped_sum
from fedsim.privacy.plan import Release

LOCAL_STEPS_RELEASE = "local dp-sgd"


class LocalDPSGDParams(LocalTrainingParams):
    """Parameters of every algorithm that trains locally by DP-SGD.

    Attributes:
        sample_rate: q, the probability with which each example enters a local step; ``local_steps * q`` is the number of local epochs.
            ``batch_size`` is for ``unit: client`` alone.
        clip: C, of one example's gradient, or for ``unit: client`` of the client's update.
        expected_batch: public divisor of the summed gradients; not derived from the number of examples.
        engine: computes the clipped sums.
    """

    sample_rate: float = Field(0.2, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    expected_batch: float = Field(64, gt=0)
    engine: EngineName = "bookkeeping"


class LocalDPSGD(LocalTraining):
    """Base class of an algorithm that is a loss per example, local DP-SGD, and an average of updates.

    A subclass supplies the same as one of :class:`fedsim.methods.local_training.LocalTraining`; row n of the loss depends on row n alone.
    """

    @property
    def in_local_steps(self) -> bool:
        """Whether noise is added to local steps; else to the clipped updates."""
        return self.task.unit != "client"

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """The loss is per example, if single examples are clipped; tested in the first round, on one client.

        Raises:
            NotPerExample: it is not.
            ValueError: the engine cannot clip the model.
        """
        if self.in_local_steps and not round_.number:
            check_loss(self, 1, lambda model: Norms(self.clip()))

    def sensitivity(self) -> float:
        """C: of one example's or group's gradient, or of one client's update."""
        return self.clip()

    def noise_at_clients(self) -> bool:
        """Noisy local steps for any trust; for ``unit: client`` it depends on the trust."""
        return self.in_local_steps or super().noise_at_clients()

    def phases(self) -> tuple[Phase, ...]:
        """All local steps of all rounds, or for ``unit: client`` all rounds."""
        if not self.in_local_steps:
            return super().phases()
        steps = self.params.local_steps
        release = Release(LOCAL_STEPS_RELEASE, self.params.sample_rate, self.params.rounds * steps, per_round=steps)
        return (Phase(release, self.noisy_steps, self.server_step, self.broadcast),)

    def noisy_steps(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Noisy local steps of every member; the sum of their updates."""
        shared, private = self.stacked(clients, broadcast)
        parameters, state = shared | private, Tensors()
        takes_part = self.participants(clients, round_)
        norms, losses, release = list[Tensor](), list[Tensor](), round_.release
        for step in range(round_.stream, round_.stream + release.per_round):
            rows = clients.poisson(step, release.sample_rate)
            batches = clients.batches(rows, step, self.draws())
            kept, joint, loss = self._clipped(clients.model, parameters, batches)
            noised = clients.add_noise(release, step, {}, kept)
            gradients = {name: value / self.params.expected_batch for name, value in noised.kept.items()}
            self.pull(clients, gradients, parameters, broadcast)
            self.local_step(parameters, gradients, state)
            norms += joint
            losses += loss
        weighed, weight = self.message_bytes(broadcast, takes_part), to_device(takes_part, clients.device)
        return clients.send(
            {name: weighted_sum(weight, update) for name, update in self.updates(clients, shared, broadcast, weight).items()},
            {
                "loss": torch.cat(losses),
                "gradient_norm": Diagnostic(torch.cat(norms), "quantiles"),
                "clipped_fraction": (torch.cat(norms) > self.clip()).float(),
            },
            weighed,
            weighed,
        )

    def updates(self, clients: Clients, shared: Tensors, broadcast: Tensors, takes_part: Tensor) -> Tensors:
        """Every member's part of the sum ``[K, ...]``, of the parameters after its steps; ``takes_part`` is 1 for those that count."""
        return {name: value - broadcast[name] for name, value in shared.items()}

    def _clipped(self, model: nn.Module, parameters: Tensors, batches: list[Batch]) -> tuple[Tensors, list[Tensor], list[Tensor]]:
        """Each member's clipped sum ``[K, ...]`` by name; norms and losses of all examples."""

        def total(model: nn.Module, batch: Batch) -> Tensor:
            return torch.stack(list(loss_parts(self.loss, model, batch).values())).sum(0)

        sums, norms, losses = [], [], []
        for position, batch in enumerate(batches):
            load_parameters(model, {name: value[position] for name, value in parameters.items()})
            result = clipped_sum(model, total, batch, Norms(self.clip(), self.task.unit), self.params.engine)
            sums.append(result.sums)
            norms.append(result.norms)
            losses.append(result.loss)
        return {name: torch.stack([own[name] for own in sums]) for name in parameters}, norms, losses
