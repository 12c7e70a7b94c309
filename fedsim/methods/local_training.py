"""Base classes of algorithms that train locally and average the clients' updates (FedAvg).

Each client takes several local steps per round and sends its update: local minus broadcast
parameters (McMahan et al. 2017, arXiv 1602.05629).

A private variant of :class:`LocalTraining` clips every update to C and adds Gaussian noise. The
presence of one client changes the sum by at most C. The presence of one example or group may
replace its client's clipped update by any other vector of norm at most C, whatever the local steps
computed and stored. So one example or group changes the sum by at most 2C.

:class:`LocalDPSGD` adds noise in every local step instead. In each step a client draws a Poisson
sample of its examples, clips each example's gradient to norm C, jointly over all parameters, and
adds its own noise to the sum (Abadi et al. 2016, arXiv 1607.00133). The client's message depends on
its data only through these noisy sums, so it may be seen under either trust. For ``unit: group``
the examples of a group are drawn together, and the sum of their gradients is clipped. For ``unit:
client`` the local steps get no noise. The updates are then clipped and get noise, as in
:class:`LocalTraining`.
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
    DiagnosticLike,
    Message,
    Round,
    Server,
    Shapes,
    Tensors,
    Values,
)
from fedsim.methods.parameters import adam_step, load_parameters, shared_tensors
from fedsim.methods.returned import loss_parts
from fedsim.privacy.clipping import ClippedSum, EngineName, Norms, clipped_sum, functional_loss
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import Release, Unit
from fedsim.seeds import Purpose

UPDATES_RELEASE = "updates"
"""The name of the release of clipped updates."""
LOCAL_STEPS_RELEASE = "local dp-sgd"
"""The name of the release of noisy local steps."""
WEIGHT = "client_weight"
"""The name under which a cohort sends the sum of its clients' weights if there is no plan."""


class LocalTrainingParams(Params):
    """Parameters of every algorithm that trains locally.

    Attributes:
        rounds: the number of communication rounds.
        local_steps: the number of Adam steps that a client takes in a round.
        batch_size: the number of examples of a local step, drawn with replacement.
        learning_rate: the learning rate of the local Adam.
        client_rate: the probability with which each client takes part in a round. It amplifies
            privacy for ``unit: client``.
        mu: the weight of FedProx's term in the local loss: half the squared distance to the
            broadcast parameters (Li et al. 2020, arXiv 1812.06127).
    """

    rounds: int = Field(10, ge=1)
    local_steps: int = Field(50, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    client_rate: float = Field(1.0, gt=0, le=1)
    mu: float = Field(0.0, ge=0)


class LocalTraining(Algorithm):
    """Base class of an algorithm that is a loss, local steps, and an average of updates.

    A subclass supplies :meth:`build` (an ordinary module for one client), :meth:`loss` and
    :meth:`generator`. The clients of a cohort are trained together, with stacked parameters. In
    shapes, K is the number of these clients and N is the number of examples in a batch.

    Class attributes:
        local: prefixes of the names of parameters that stay with a client.
    """

    params: Any
    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")
    local: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the parts ``[N]`` of the loss by name; the mean of their sum is minimised."""

    def draws(self) -> Shapes:
        """Return the shapes of the standard normal draws that one example's loss needs, by name."""
        return {}

    def clip(self) -> float:
        """Return the clip norm of an update; it is infinite without a parameter ``clip``."""
        return float(getattr(self.params, "clip", math.inf))

    def sensitivity(self) -> float:
        """Return C if the unit is a client, else 2C.

        One example or group may turn its client's clipped update into any other.
        """
        if self.task.unit == "client":
            return self.clip()
        return 2 * self.clip()

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of all rounds, each of which is one step of the release.

        The sampling of clients lowers epsilon for ``unit: client`` only, so for other units the
        sample rate is 1.
        """
        rate = 1.0
        if self.task.unit == "client":
            rate = self.params.client_rate
        release = Release(UPDATES_RELEASE, rate, self.params.rounds)
        return (Phase(release, self.client_round, self.server_step, self.broadcast),)

    def broadcast(self, server: Server) -> Tensors:
        """Return the shared parameters."""
        return {
            name: p
            for name, p in shared_tensors(server.model).items()
            if not name.startswith(self.local)
        }

    def start_clients(self, clients: Clients) -> None:
        """Give every client the seed's initial values of the parameters that stay with it."""
        for name, parameter in clients.model.named_parameters():
            if name.startswith(self.local):
                clients.state[name] = _stack(parameter.detach(), clients)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Train the clients that take part, and send the sum of their weighted, clipped updates."""
        takes_part = self.participants(clients, round_)
        chosen = [
            position
            for position, takes in enumerate(takes_part.tolist())
            if takes and len(clients.y[position])
        ]
        active = clients.only(chosen)
        shared, losses = self._train(active, round_, broadcast)
        self._store_state(clients, active, chosen)
        has_plan = clients.plan is not None
        weights = torch.tensor([float(len(y)) for y in active.y])
        if has_plan:
            # The number of examples is private, and so is who takes part. So all weights are equal,
            # and bytes are counted for all members.
            weights = torch.ones(len(chosen))
            takes_part = torch.ones(len(clients.members))
        weights = to_device(weights, clients.device)
        updates = {name: value - broadcast[name] for name, value in shared.items()}
        clipped, norms = clip_updates(updates, self.clip())
        sums = {name: weighted_sum(weights, update) for name, update in clipped.items()}
        sent = clients.add_noise(round_.release, round_.stream, sums).sent
        if not has_plan:
            sent = sent | {WEIGHT: weights.sum()}
        diagnostics: dict[str, DiagnosticLike] = {
            f"loss_{name}": value for name, value in losses.items()
        }
        diagnostics["gradient_norm"] = Diagnostic(norms, "quantiles")
        diagnostics["clipped_fraction"] = (~(norms <= self.clip())).float()
        size = self.message_bytes(broadcast, takes_part)
        return clients.send(sent, diagnostics, size, size)

    def _train(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """Take all local steps of a round.

        Returns:
            The shared parameters after the steps ``[K, ...]``, and the parts of the last step's
            loss ``[K]``. Without a client there are no parts.
        """
        shared, local_parameters = self.stacked(clients, broadcast)
        parameters = shared | local_parameters
        trainable = {name for name, p in clients.model.named_parameters() if p.requires_grad}
        trained = {name: value for name, value in parameters.items() if name in trainable}
        state = Tensors()
        losses = Tensors()
        if clients.members:
            minibatches = Minibatches(self, clients, round_)
            for step in range(self.params.local_steps):
                gradients, losses = minibatches.gradients(step, trained, parameters)
                self.pull(clients, gradients, parameters, broadcast)
                self.local_step(parameters, gradients, state)
        return shared, losses

    def _store_state(self, clients: Clients, active: Clients, positions: list[int]) -> None:
        """Copy the state of the ``active`` clients to their ``positions`` among all members."""
        index = to_device(
            torch.tensor(positions, dtype=torch.long),
            clients.device,
        )
        for name, value in active.state.items():
            if value.dim():
                clients.state[name][index] = value
            else:
                clients.state[name][...] = value

    def stacked(self, clients: Clients, broadcast: Tensors) -> tuple[Tensors, Tensors]:
        """Return the parameters ``[K, ...]`` with which the members start a round.

        Returns:
            Copies of the broadcast parameters, and the parameters that stay with the clients. The
            second are not copied, so local steps change them in place.
        """
        shared = {name: _stack(value, clients) for name, value in broadcast.items()}
        local_parameters = {
            name: value for name, value in clients.state.items() if name.startswith(self.local)
        }
        return shared, local_parameters

    def participants(self, clients: Clients, round_: Round) -> Tensor:
        """Return 1.0 for each member that takes part in the round, else 0.0; ``[K]`` on the CPU."""
        takes_part = members_that_take_part(clients, round_, self.params.client_rate)
        return torch.tensor(takes_part, dtype=torch.float32)

    def message_bytes(self, broadcast: Tensors, takes_part: Tensor) -> int:
        """Return the bytes of the updates of all members that take part.

        The broadcasts to them have the same size.
        """
        numbers = sum(value.numel() for value in broadcast.values())
        return NUMBER_BYTES * numbers * int(takes_part.sum())

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """Add the mean update to the shared parameters.

        If the clients sent the sum of their weights (:data:`WEIGHT`), it is the divisor. Otherwise
        the divisor is the expected number of clients that take part, which is public.
        """
        shared = self.broadcast(server)
        expected = to_device(
            torch.tensor(self.task.clients * self.params.client_rate),
            server.device,
        )
        divisor = total.get(WEIGHT, expected).clamp_min(1e-12)
        for name, parameter in shared.items():
            parameter += total[name] / divisor
        return {"parameter_norm": torch.stack([p.norm() for p in shared.values()]).norm()}

    def pull(
        self,
        clients: Clients,
        gradients: Tensors,
        parameters: Tensors,
        broadcast: Tensors,
    ) -> None:
        """Add the gradients of those terms of the loss that depend on no example, in place.

        Here there is one such term, FedProx's. A subclass may replace it or add others.

        Args:
            clients: the clients that take the step.
            gradients: gradients ``[K, ...]`` of a local step by name.
            parameters: the clients' parameters ``[K, ...]``.
            broadcast: the parameters that they received.
        """
        if not self.params.mu:
            return
        for name, gradient in gradients.items():
            if name in broadcast:
                distance = parameters[name] - broadcast[name]
                gradients[name] = gradient + self.params.mu * distance

    def local_step(self, parameters: Tensors, gradients: Tensors, state: Tensors) -> None:
        """Take one local Adam step, in place; ``state`` is empty in the first step of a round."""
        adam_step(parameters, gradients, state, self.params.learning_rate)


def members_that_take_part(clients: Clients, round_: Round, client_rate: float) -> list[bool]:
    """Return whether each member takes part in the round; its probability is ``client_rate``."""
    takes_part = []
    for client in clients.members:
        stream = clients.seeds.keystream(Purpose.SAMPLING, round_.number, client)
        takes_part.append(bool(stream.uniform(1)[0] < client_rate))
    return takes_part


def _stack(value: Tensor, clients: Clients) -> Tensor:
    """Return one copy of ``value`` per client, ``[K, ...]``."""
    return value.expand(len(clients.members), *value.shape).clone()


class Minibatches:
    """The minibatches of all members in a round, side by side, drawn with replacement.

    Args:
        algorithm: has the loss, its draws, and the parameters ``local_steps`` and ``batch_size``.
        clients: the members; each must have an example.
        round_: the round.
    """

    def __init__(self, algorithm: Any, clients: Clients, round_: Round) -> None:
        self.clients = clients
        size = algorithm.params.batch_size
        rows = clients.minibatches(round_.stream, algorithm.params.local_steps, size)
        self.picked = to_device(
            torch.stack(clients.pooled.numbers(rows), 1),
            clients.device,
        )
        self.streams = [
            clients.seeds.keystream(Purpose.LATENT, round_.stream, client)
            for client in clients.members
        ]
        self.shapes = {name: (size, *shape) for name, shape in algorithm.draws().items()}
        layout = Layout.on(
            clients.device,
            torch.zeros(size, dtype=torch.long),
            1,
        )
        loss = partial(loss_parts, algorithm)

        def mean_loss(parameters: Tensors, x: Tensor, y: Tensor, draws: Tensors) -> Tensors:
            parts = functional_loss(
                clients.model,
                loss,
                parameters,
                Batch(x, y, draws, layout),
            )
            return {name: part.mean() for name, part in parts.items()}

        self._mean_losses = torch.func.vmap(mean_loss)

    def gradients(
        self,
        step: int,
        by: Tensors,
        fixed: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """Return the gradients of every member's mean loss, and the parts of that loss.

        Args:
            step: the number of the local step in the round, which selects the minibatches. The
                random draws of the loss are new in every call.
            by: stacked parameters ``[K, ...]`` for which gradients are computed.
            fixed: further stacked parameters of the loss, which get no gradient.

        Returns:
            Gradients ``[K, ...]`` and parts of the loss ``[K]``, by name.
        """
        drawn = [gaussian(self.shapes, 1.0, stream).parts for stream in self.streams]
        draws = {
            name: to_device(torch.stack([parts[name] for parts in drawn]), self.clients.device)
            for name in self.shapes
        }
        variables = {name: value.detach().requires_grad_() for name, value in by.items()}
        x = self.clients.pooled.x[self.picked[step]]
        y = self.clients.pooled.y[self.picked[step]]
        parts = self._mean_losses(fixed | variables, x, y, draws)
        # A client's loss depends on its own parameters only, so the gradient of the sum contains
        # the gradient of every client.
        total = torch.stack(list(parts.values())).sum()
        gradients = torch.autograd.grad(
            total,
            list(variables.values()),
            materialize_grads=True,
        )
        losses = {name: part.detach() for name, part in parts.items()}
        return dict(zip(variables, gradients, strict=True)), losses


class LocalDPSGDParams(LocalTrainingParams):
    """Parameters of every algorithm that trains locally by DP-SGD.

    Attributes:
        sample_rate: q, the probability with which each example enters a local step. The number of
            local epochs is ``local_steps * q``. ``batch_size`` is used for ``unit: client`` only.
        clip: C, the clip norm of one example's gradient; for ``unit: client`` that of the client's
            update.
        expected_batch: the public divisor of the summed gradients; it is not derived from the
            number of examples, which is private.
        engine: how clipped sums are computed.
    """

    sample_rate: float = Field(0.2, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    expected_batch: float = Field(64, gt=0)
    engine: EngineName = "bookkeeping"


class LocalDPSGD(LocalTraining):
    """Base class of an algorithm that is a loss per example, local DP-SGD, and averaged updates.

    A subclass supplies the same as one of :class:`LocalTraining`. The loss of example n may depend
    on example n alone.
    """

    @property
    def in_local_steps(self) -> bool:
        """Whether noise is added to local steps; else it is added to the clipped updates."""
        return self.task.unit != "client"

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Test in the first round, on one client, that the loss is per example.

        Nothing is tested if whole clients are clipped.

        Raises:
            NotPerExample: the loss of one example depends on others.
            ValueError: it cannot be tested.
        """
        if self.in_local_steps and not round_.number:
            check_loss(self, 1, lambda model: Norms(self.clip()))

    def sensitivity(self) -> float:
        """Return C, the largest norm of one unit's gradient, or of one client's update."""
        return self.clip()

    def noise_at_clients(self) -> bool:
        """Return True for noisy local steps; for ``unit: client`` it depends on the trust."""
        return self.in_local_steps or super().noise_at_clients()

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase of all rounds.

        Each local step is one step of the release; for ``unit: client`` each round is one.
        """
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
        """Take the noisy local steps of every member; send the sum of the participants' updates.

        Members that do not take part compute the steps too, because the plan and the ledger count
        every step for every client.
        """
        shared, local_parameters = self.stacked(clients, broadcast)
        parameters = shared | local_parameters
        state = Tensors()
        takes_part = self.participants(clients, round_)
        norms: list[Tensor] = []
        losses: list[Tensor] = []
        release = round_.release
        for step in range(round_.stream, round_.stream + release.per_round):
            rows = clients.poisson(step, release.sample_rate)
            batches = clients.batches(rows, step, self.draws())
            results = self._clipped_sums(clients.model, parameters, batches)
            norms += [result.norms for result in results]
            losses += [result.loss for result in results]
            trainable = results[0].sums
            sums = {
                name: torch.stack([result.sums[name] for result in results]) for name in trainable
            }
            noised = clients.add_noise(release, step, {}, sums)
            gradients = {
                name: value / self.params.expected_batch for name, value in noised.kept.items()
            }
            self.pull(clients, gradients, parameters, broadcast)
            self.local_step(parameters, gradients, state)
        weights = to_device(takes_part, clients.device)
        updates = self.updates(clients, shared, broadcast, weights)
        all_norms = torch.cat(norms)
        size = self.message_bytes(broadcast, takes_part)
        return clients.send(
            {name: weighted_sum(weights, update) for name, update in updates.items()},
            {
                "loss": torch.cat(losses),
                "gradient_norm": Diagnostic(all_norms, "quantiles"),
                "clipped_fraction": (~(all_norms <= self.clip())).float(),
            },
            size,
            size,
        )

    def updates(
        self,
        clients: Clients,
        shared: Tensors,
        broadcast: Tensors,
        takes_part: Tensor,
    ) -> Tensors:
        """Return what every member adds to the sum after noisy local steps, ``[K, ...]`` by name.

        For ``unit: client`` it is not called, because :meth:`client_round` sends the updates.

        Args:
            clients: the members.
            shared: their shared parameters after the local steps ``[K, ...]``.
            broadcast: the parameters before them.
            takes_part: 1 for members that count in the sum, else 0 ``[K]``.
        """
        return {name: value - broadcast[name] for name, value in shared.items()}

    def _clipped_sums(
        self,
        model: nn.Module,
        parameters: Tensors,
        batches: list[Batch],
    ) -> list[ClippedSum]:
        """Return each member's clipped sum, with the norms and losses of its examples.

        Args:
            model: computes with the parameters of one member after the other.
            parameters: the members' parameters ``[K, ...]``.
            batches: one batch per member.
        """

        def total(model: nn.Module, batch: Batch) -> Tensor:
            return torch.stack(list(loss_parts(self, model, batch).values())).sum(0)

        unit_norms = Norms(self.clip(), self.task.unit)
        results = []
        for position, batch in enumerate(batches):
            load_parameters(
                model,
                {name: value[position] for name, value in parameters.items()},
            )
            results.append(clipped_sum(model, total, batch, unit_norms, self.params.engine))
        return results


def clip_updates(updates: Tensors, clip: float) -> tuple[Tensors, Tensor]:
    """Scale every client's update to a joint L2 norm of at most ``clip``.

    An update that is not finite counts as 0: a nan in the sum would reveal its client with
    certainty.

    Args:
        updates: updates ``[K, ...]`` by name.
        clip: the clip norm.

    Returns:
        The clipped updates, and the norms ``[K]`` before clipping.
    """
    # A parameter that is one number has the update [K], which the added dimension makes [K, 1].
    rows = [update.unsqueeze(1).flatten(1) for update in updates.values()]
    squares = [row.double().square().sum(1) for row in rows]
    norms = torch.stack(squares).sum(0).sqrt().float()
    broken = ~norms.isfinite()
    factor = (clip / norms.clamp_min(1e-12)).clamp_max(1.0)
    clipped = {}
    for name, update in updates.items():
        shape = (-1, *[1] * (update.dim() - 1))
        clipped[name] = (update * factor.view(shape)).masked_fill(broken.view(shape), 0)
    return clipped, norms


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Return ``sum_k weights_k values_k`` for weights ``[K]`` and values ``[K, ...]``.

    It is computed in float64, so that the division of clients into cohorts hardly changes the sum.
    """
    total: Tensor = torch.einsum("k,k...->...", weights.double(), values.double())
    return total
