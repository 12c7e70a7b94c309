"""Algorithms that train locally and average: several local steps a round, then the clients' updates
(FedAvg).

McMahan et al. 2017 (arXiv 1602.05629). A client sends its update, local minus broadcast parameters.
A private variant clips every update to C and adds Gaussian noise. One client's presence changes the
sum by at most C. One example's or group's presence may turn its client's clipped update into any
other, whatever the local steps computed and stored, so it changes the sum by at most 2C.

Or every local step is private (:class:`LocalDPSGD`): a client draws a Poisson sample of its rows,
clips every example's gradient by all of its parameters to C and adds noise of its own (Abadi et al.
2016, arXiv 1607.00133), for any trust: its message is a function of noisy steps. For ``unit:
group`` the rows of a group are drawn, summed and clipped together; for ``unit: client`` the clipped
updates get the noise, not the local steps.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.batch import Batch, Layout
from fedsim.device import to_device
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.contract import check_loss
from fedsim.methods.messages import (
    NUMBER_BYTES,
    Diagnostic,
    Message,
    Round,
    Server,
    Tensors,
    Values,
)
from fedsim.methods.parameters import adam_step, load_parameters, shared_tensors
from fedsim.methods.returned import loss_parts
from fedsim.privacy.clipping import EngineName, Norms, clipped_sum, functional_loss
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import Release, Unit
from fedsim.seeds import Purpose

UPDATES_RELEASE = "updates"
LOCAL_STEPS_RELEASE = "local dp-sgd"
WEIGHT = "client_weight"


class LocalTrainingParams(Params):
    """Parameters of every algorithm that trains locally.

    Attributes:
        rounds: communication rounds.
        local_steps: Adam steps of a client in a round.
        batch_size: rows of a local step, drawn with replacement.
        learning_rate: the local Adam's.
        client_rate: the probability with which each client takes part in a round; it amplifies for
            ``unit: client``.
        mu: FedProx's: weight of half the squared distance to the broadcast parameters in the local
            loss (Li et al. 2020, arXiv 1812.06127).
    """

    rounds: int = Field(10, ge=1)
    local_steps: int = Field(50, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    client_rate: float = Field(1.0, gt=0, le=1)
    mu: float = Field(0.0, ge=0)


class LocalTraining(Algorithm):
    """Base class of an algorithm that is a loss, local steps, and an average of updates.

    A subclass supplies :meth:`build` (an ordinary module for one client), :meth:`loss`,
    :meth:`generator`, and in ``local`` the name prefixes of parameters that stay with a client. The
    clients of a cohort are trained together, stacked.
    """

    params: Any
    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")
    local: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Parts ``[N]`` of the loss by name; the mean of their sum is minimised."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the standard normal draws that one example's loss needs, by name."""
        return {}

    def clip(self) -> float:
        """The clip norm of an update; infinite without a parameter ``clip``."""
        return float(getattr(self.params, "clip", math.inf))

    def sensitivity(self) -> float:
        """C for a client's presence, 2C for an example's or a group's: its client's clipped update
        may become any other.
        """
        if self.task.unit == "client":
            return self.clip()
        return 2 * self.clip()

    def phases(self) -> tuple[Phase, ...]:
        """All rounds; sampling clients amplifies for ``unit: client`` only."""
        if self.task.unit == "client":
            rate = self.params.client_rate
        else:
            rate = 1.0
        return (
            Phase(
                Release(UPDATES_RELEASE, rate, self.params.rounds),
                self.client_round,
                self.server_step,
                self.broadcast,
            ),
        )

    def broadcast(self, server: Server) -> Tensors:
        """The shared parameters."""
        return {
            name: p
            for name, p in shared_tensors(server.model).items()
            if not name.startswith(self.local)
        }

    def start_clients(self, clients: Clients) -> None:
        """Every client starts with the seed's local parameters."""
        for name, parameter in clients.model.named_parameters():
            if name.startswith(self.local):
                clients.state[name] = (
                    parameter.detach().expand(len(clients.members), *parameter.shape).clone()
                )

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Local steps of all clients that take part, at once; the sum of their weighted, clipped
        updates.
        """
        takes_part = self.participants(clients, round_)
        chosen = [
            i
            for i, (takes, x) in enumerate(zip(takes_part.tolist(), clients.x, strict=True))
            if takes and len(x)
        ]
        active = clients.only(chosen)
        positions = to_device(torch.tensor(chosen, dtype=torch.long), clients.device)
        shared, own = self.stacked(active, broadcast)
        parameters = shared | own
        state = Tensors()
        losses = Tensors()
        if chosen:
            minibatches = Minibatches(self, active, round_)
            for step in range(self.params.local_steps):
                gradients, losses = minibatches.gradients(step, parameters, {})
                self.pull(active, gradients, parameters, broadcast)
                self.local_step(parameters, gradients, state)
        for name, value in active.state.items():
            clients.state[name][positions if value.dim() else ...] = value
        private = clients.plan is not None
        weight = to_device(
            torch.ones(len(chosen)) if private else torch.tensor([float(len(x)) for x in active.x]),
            clients.device,
        )
        clipped, norms = clip_updates(
            {name: shared[name] - broadcast[name] for name in shared}, self.clip()
        )
        noised = clients.add_noise(
            round_.release,
            round_.stream,
            {name: weighted_sum(weight, update) for name, update in clipped.items()},
        )
        weighed = self.message_bytes(
            broadcast, torch.ones(len(clients.members)) if private else takes_part
        )
        return clients.send(
            noised.sent if private else noised.sent | {WEIGHT: weight.sum()},
            {
                **{f"loss_{name}": value for name, value in losses.items()},
                "gradient_norm": Diagnostic(norms, "quantiles"),
                "clipped_fraction": (~(norms <= self.clip())).float(),
            },
            weighed,
            weighed,
        )

    def stacked(self, clients: Clients, broadcast: Tensors) -> tuple[Tensors, Tensors]:
        """Every member's initial parameters ``[K, ...]``: the broadcast ones, and its own, which
        are trained in place.
        """
        count = len(clients.members)
        shared = {name: p.expand(count, *p.shape).clone() for name, p in broadcast.items()}
        return shared, {
            name: value for name, value in clients.state.items() if name.startswith(self.local)
        }

    def participants(self, clients: Clients, round_: Round) -> Tensor:
        """1.0 for a member that takes part in the round, else 0.0: ``[K]``, on the CPU."""
        streams = (
            clients.seeds.keystream(Purpose.SAMPLING, round_.number, client)
            for client in clients.members
        )
        return torch.tensor(
            [float(stream.uniform(1)[0] < self.params.client_rate) for stream in streams]
        )

    def message_bytes(self, broadcast: Tensors, takes_part: Tensor) -> int:
        """Bytes of the updates of all members that take part, or of the broadcasts to them."""
        return (
            NUMBER_BYTES
            * sum(value.numel() for value in broadcast.values())
            * int(takes_part.sum())
        )

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """Add the mean update: by row counts without privacy, by a public number of clients with
        it.
        """
        shared = self.broadcast(server)
        expected = to_device(
            torch.tensor(self.task.clients * self.params.client_rate), server.device
        )
        divisor = total.get(WEIGHT, expected).clamp_min(1e-12)
        for name, parameter in shared.items():
            parameter += total[name] / divisor
        return {"parameter_norm": torch.stack([p.norm() for p in shared.values()]).norm()}

    def pull(
        self, clients: Clients, gradients: Tensors, parameters: Tensors, broadcast: Tensors
    ) -> None:
        """Add to the gradients ``[K, ...]`` of a local step, in place, what depends on no row: the
        proximal term's.
        """
        for name in broadcast if self.params.mu else ():
            gradients[name] = gradients[name] + self.params.mu * (
                parameters[name] - broadcast[name]
            )

    def local_step(self, parameters: Tensors, gradients: Tensors, state: Tensors) -> None:
        """Take a local step, in place: Adam's; ``state`` is empty in a round's first."""
        adam_step(parameters, gradients, state, self.params.learning_rate)


class Minibatches:
    """A round's minibatches of all members, side by side, drawn with replacement, and their losses'
    gradients.
    """

    def __init__(self, algorithm: Any, clients: Clients, round_: Round) -> None:
        self.clients = clients
        size = algorithm.params.batch_size
        rows = clients.minibatches(round_.stream, algorithm.params.local_steps, size)
        self.picked = to_device(torch.stack(clients.pooled.numbers(rows), 1), clients.device)
        self.streams = [
            clients.seeds.keystream(Purpose.LATENT, round_.stream, client)
            for client in clients.members
        ]
        self.shapes = {name: (size, *shape) for name, shape in algorithm.draws().items()}
        layout = Layout.on(clients.device, torch.zeros(size, dtype=torch.long), 1)

        def of_client(values: Tensors, x: Tensor, y: Tensor, *draws: Tensor) -> Tensors:
            batch = Batch(x, y, dict(zip(self.shapes, draws, strict=True)), layout)
            return {
                name: part.mean()
                for name, part in functional_loss(
                    clients.model, partial(loss_parts, algorithm), values, batch
                ).items()
            }

        self._of_all = torch.func.vmap(of_client)

    def gradients(self, step: int, by: Tensors, fixed: Tensors) -> tuple[Tensors, Tensors]:
        """Of every member's mean loss ``[K, ...]``, by stacked parameters, beside others that are
        ``fixed``; and loss parts ``[K]``.
        """
        drawn = [gaussian(self.shapes, 1.0, stream).parts for stream in self.streams]
        draws = [
            to_device(torch.stack([parts[name] for parts in drawn]), self.clients.device)
            for name in self.shapes
        ]
        followed = {name: value.detach().requires_grad_() for name, value in by.items()}
        x = self.clients.pooled.x[self.picked[step]]
        y = self.clients.pooled.y[self.picked[step]]
        parts = self._of_all(fixed | followed, x, y, *draws)
        # a client's loss depends on its own parameters only, so the sum's gradient holds every
        # client's gradient
        found = torch.autograd.grad(
            torch.stack(list(parts.values())).sum(), list(followed.values()), materialize_grads=True
        )
        return dict(zip(followed, found, strict=True)), {
            name: part.detach() for name, part in parts.items()
        }


class LocalDPSGDParams(LocalTrainingParams):
    """Parameters of every algorithm that trains locally by DP-SGD.

    Attributes:
        sample_rate: q, the probability with which each example enters a local step; ``local_steps *
            q`` is the number of local epochs. ``batch_size`` is for ``unit: client`` alone.
        clip: C, of one example's gradient, or for ``unit: client`` of the client's update.
        expected_batch: public divisor of the summed gradients; not derived from the number of
            examples.
        engine: computes the clipped sums.
    """

    sample_rate: float = Field(0.2, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    expected_batch: float = Field(64, gt=0)
    engine: EngineName = "bookkeeping"


class LocalDPSGD(LocalTraining):
    """Base class of an algorithm that is a loss per example, local DP-SGD, and an average of
    updates.

    A subclass supplies the same as one of :class:`LocalTraining`; row n of the loss depends on row
    n alone.
    """

    @property
    def in_local_steps(self) -> bool:
        """Whether noise is added to local steps; else to the clipped updates."""
        return self.task.unit != "client"

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """The loss is per example, if single examples are clipped; tested in the first round, on
        one client.
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
        release = Release(
            LOCAL_STEPS_RELEASE,
            self.params.sample_rate,
            self.params.rounds * steps,
            per_round=steps,
        )
        return (Phase(release, self.noisy_steps, self.server_step, self.broadcast),)

    def noisy_steps(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Noisy local steps of every member; the sum of their updates."""
        shared, private = self.stacked(clients, broadcast)
        parameters = shared | private
        state = Tensors()
        takes_part = self.participants(clients, round_)
        norms = list[Tensor]()
        losses = list[Tensor]()
        release = round_.release
        for step in range(round_.stream, round_.stream + release.per_round):
            rows = clients.poisson(step, release.sample_rate)
            batches = clients.batches(rows, step, self.draws())
            kept, joint, loss = self._clipped(clients.model, parameters, batches)
            noised = clients.add_noise(release, step, {}, kept)
            gradients = {
                name: value / self.params.expected_batch for name, value in noised.kept.items()
            }
            self.pull(clients, gradients, parameters, broadcast)
            self.local_step(parameters, gradients, state)
            norms += joint
            losses += loss
        weighed = self.message_bytes(broadcast, takes_part)
        weight = to_device(takes_part, clients.device)
        return clients.send(
            {
                name: weighted_sum(weight, update)
                for name, update in self.updates(clients, shared, broadcast, weight).items()
            },
            {
                "loss": torch.cat(losses),
                "gradient_norm": Diagnostic(torch.cat(norms), "quantiles"),
                "clipped_fraction": (torch.cat(norms) > self.clip()).float(),
            },
            weighed,
            weighed,
        )

    def updates(
        self, clients: Clients, shared: Tensors, broadcast: Tensors, takes_part: Tensor
    ) -> Tensors:
        """Every member's part of the sum ``[K, ...]``, of the parameters after its steps;
        ``takes_part`` is 1 for those that count.
        """
        return {name: value - broadcast[name] for name, value in shared.items()}

    def _clipped(
        self, model: nn.Module, parameters: Tensors, batches: list[Batch]
    ) -> tuple[Tensors, list[Tensor], list[Tensor]]:
        """Each member's clipped sum ``[K, ...]`` by name; norms and losses of all examples."""

        def total(model: nn.Module, batch: Batch) -> Tensor:
            return torch.stack(list(loss_parts(self, model, batch).values())).sum(0)

        sums = []
        norms = []
        losses = []
        for position, batch in enumerate(batches):
            load_parameters(model, {name: value[position] for name, value in parameters.items()})
            result = clipped_sum(
                model, total, batch, Norms(self.clip(), self.task.unit), self.params.engine
            )
            sums.append(result.sums)
            norms.append(result.norms)
            losses.append(result.loss)
        return (
            {name: torch.stack([own[name] for own in sums]) for name in parameters},
            norms,
            losses,
        )


def clip_updates(updates: Tensors, clip: float) -> tuple[Tensors, Tensor]:
    """Updates ``[K, ...]`` by name, every client's scaled to a joint L2 norm of at most ``clip``;
    and their norms ``[K]`` before.

    An update that is not finite counts as 0: a nan in the sum would reveal its client with
    certainty.
    """
    norms = (
        torch.stack([update.flatten(1).double().square().sum(1) for update in updates.values()])
        .sum(0)
        .sqrt()
        .float()
    )
    broken = ~norms.isfinite()
    factor = (clip / norms.clamp_min(1e-12)).clamp_max(1.0)
    clipped = {}
    for name, update in updates.items():
        shape = (-1, *[1] * (update.dim() - 1))
        clipped[name] = (update * factor.view(shape)).masked_fill(broken.view(shape), 0)
    return clipped, norms


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """``sum_k weights_k values_k`` of ``[K]`` and ``[K, ...]``, in float64: cohorts of any size
    give the same sum.
    """
    total: Tensor = torch.einsum("k,k...->...", weights.double(), values.double())
    return total
