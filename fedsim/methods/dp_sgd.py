"""Algorithms that are a loss per example: federated DP-SGD with one step a round.

A round: every client draws a Poisson sample, the sum of its clipped per-example gradients goes to
the server, noise is added (once to the sum under ``trust: aggregate``, by every client under
``trust: silo``), the server takes an Adam step (Abadi et al. 2016, arXiv 1607.00133; one local step
a round, so the sum over clients is DP-SGD on the union of their data). The gradient by what stays
with a client (encoder, code) is clipped jointly with the shared part and gets noise of its own at
the client.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.clients import Clients
from fedsim.methods.contract import check_clients, check_loss
from fedsim.methods.coordinates import PREFIX, Coordinates, coordinate_statistics
from fedsim.methods.messages import (
    Diagnostic,
    DiagnosticLike,
    Message,
    Round,
    Server,
    Tensors,
    Values,
)
from fedsim.methods.one_shot import statistic_phase
from fedsim.methods.parameters import (
    adam_step,
    average_step,
    load_parameters,
    local_names,
    shared_tensors,
)
from fedsim.methods.products import Product, for_embeddings
from fedsim.methods.returned import loss_parts
from fedsim.privacy.clipping import EngineName, Norms, clipped_sum
from fedsim.privacy.plan import Claim, Release, Unit
from fedsim.seeds import Purpose

RELEASE = "dp-sgd"


class DPSGDParams(Params):
    """Parameters of every algorithm that learns by DP-SGD.

    Attributes:
        rounds: noisy steps.
        sample_rate: q, the probability with which each example, or each group with all its rows,
            enters a round.
        client_rate: the probability with which each client takes part; it amplifies for ``unit:
            client`` and must be 1 otherwise.
        clip: C, the joint clip norm of one unit's contribution.
        learning_rate, local_learning_rate: Adam's, for the shared and for the per-client
            parameters.
        expected_batch: public divisor of the summed gradients; not derived from how many examples
            there are.
        precondition: share of the budget (in 1 / sigma^2) that is spent on released coordinates in
            which rows are centred, of one size and less stretched
            (:mod:`fedsim.methods.coordinates`); 0: rows as they are.
        noised: ``all`` clips and noises shared and per-client gradients; ``shared`` the shared ones
            only.
        engine: how clipped sums are computed.
    """

    rounds: int = Field(300, ge=1)
    sample_rate: float = Field(0.2, gt=0, le=1)
    client_rate: float = Field(1.0, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    learning_rate: float = Field(0.03, gt=0)
    local_learning_rate: float = Field(0.01, ge=0)
    expected_batch: float = Field(256, gt=0)
    precondition: float = Field(0.0, ge=0, lt=1)
    noised: Literal["all", "shared"] = "all"
    engine: EngineName = "bookkeeping"


class DPSGD(Algorithm):
    """Base class of an algorithm that is a loss per example; everything about privacy is done here.

    A subclass supplies :meth:`build`, :meth:`loss`, :meth:`generator` and, if it needs random
    numbers per example, :meth:`draws`. Parameters whose names begin with one of ``server_only`` are
    the server's: the loss does not read them, clients do not get them, and the server's steps, on
    :meth:`public_terms` or of the subclass's own, are all that trains them. The learning rate falls
    linearly to the share ``decay`` of itself; the product is the mean of the iterates from the
    share ``average_from`` of the rounds on (free).
    """

    params: Any
    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")
    server_only: ClassVar[tuple[str, ...]] = ()
    decay: ClassVar[float] = 0.05
    average_from: ClassVar[float] = 0.5

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Parts of the loss by name, ``[N]`` each; their sum is minimised; row n depends on row n
        alone.
        """

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the standard normal draws that one example's loss needs, by name."""
        return {}

    def public_terms(self, model: nn.Module, stream: torch.Generator) -> Mapping[str, Tensor]:
        """Terms of the server's objective, scalars by name, that depend on shared parameters alone,
        so they cost no privacy.

        ``stream`` is of the round's random numbers, if a term needs any.
        """
        return {}

    def step_shares(
        self, mean: Tensors, noise: Mapping[str, float], state: Tensors, *, by_client: bool
    ) -> Tensors | None:
        """How much of Adam's step each parameter takes, by name, from the noisy mean and its
        noise's deviation; None: all of it.
        """
        return None

    def start_in(self, coordinates: Coordinates, server: Server) -> None:
        """Set what starts otherwise where rows are in released coordinates; post-processing,
        free.
        """

    def clip_weights(self) -> Mapping[str, float]:
        """Weights of parameters inside the joint clip, by name prefix (see
        :class:`fedsim.privacy.clipping.Norms`).
        """
        return {}

    def diagnostics(
        self, clients: Clients, parts: Mapping[str, Tensor], round_: Round
    ) -> Mapping[str, DiagnosticLike]:
        """Diagnostics by name, a value per example or per client, from the round's model and loss
        parts; not private, never sent.
        """
        return {}

    # --- privacy ---

    def phases(self) -> tuple[Phase, ...]:
        """The coordinates' statistics, if any; then all rounds as one Poisson-subsampled Gaussian
        mechanism, over the units.
        """
        if self.task.unit == "client":
            rate = self.params.client_rate
        else:
            rate = self.params.sample_rate
        sgd = Phase(
            Release(RELEASE, rate, self.params.rounds),
            self.client_round,
            self.server_step,
            self.broadcast,
        )
        share = self.params.precondition
        if not share:
            return (sgd,)
        mean, spread = coordinate_statistics(share)

        def receive(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
            spread.receive(server, sums, std)
            self.start_in(Coordinates(server.tensors), server)

        statistics = (mean, replace(spread, receive=receive))
        first = (
            statistic_phase(statistic, self.clip(), self.task, lambda server: dict(server.tensors))
            for statistic in statistics
        )
        return (*first, sgd.taking(1 - share))

    def check_setting(self) -> None:
        """Clients are sampled where they are the unit only."""
        if self.task.unit != "client" and self.params.client_rate < 1:
            what = (
                f"{self.params.client_rate:g} samples clients, which does not amplify the "
                "budget of a unit within one"
            )
            raise UserError("client_rate", what, "give 1, or unit: client")

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """The loss is per example where single examples are clipped, else its client's own; tried
        in the first round.
        """
        if round_.step or round_.release.name != RELEASE:
            return
        if self.task.unit == "client":
            check_clients(self, min(2, self.task.clients))
        else:
            check_loss(
                self,
                min(2, self.task.clients),
                lambda model: replace(self.norms(model), unit="example"),
            )

    def scope(self) -> str:
        """``joint`` where all gradients are noised, else ``shared``."""
        if self.params.noised == "all":
            return "joint"
        return "shared"

    def clip(self) -> float:
        """C, the norm that a unit's gradient is clipped to."""
        return float(self.params.clip)

    def claim(self) -> Claim:
        """Proved if everything that depends on an example carries noise, or if a client's whole
        contribution is what is clipped.
        """
        if self.params.noised == "all" or self.task.unit == "client":
            return "proved"
        return "heuristic"

    def releases_codes(self) -> bool:
        """Codes that were never noised do not leave their clients."""
        return bool(self.params.noised == "all")

    def norms(self, model: nn.Module) -> Norms:
        """What is clipped, jointly, to what."""
        free = () if self.params.noised == "all" else tuple(local_names(model))
        return Norms(self.clip(), self.task.unit, self.clip_weights(), free)

    def product(self, server: Server) -> Product:
        """What was trained in the coordinates, for embeddings."""
        coordinates = Coordinates.where_released(server.tensors)
        return for_embeddings(super().product(server), coordinates, self.task.dim)

    # --- one round ---

    def broadcast(self, server: Server) -> Tensors:
        """The shared parameters but for the server's own, and the coordinates."""
        shared = {
            name: p
            for name, p in shared_tensors(server.model).items()
            if not name.startswith(self.server_only)
        }
        return shared | {
            name: value for name, value in server.tensors.items() if name.startswith(PREFIX)
        }

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """The cohort's clipped sum in one batch; per-client parameters take a noisy step of their
        own.
        """
        load_parameters(clients.model, broadcast)
        rows = clients.poisson(round_.stream, self.params.sample_rate, self.params.client_rate)
        batch = clients.in_coordinates(Coordinates.where_released(broadcast)).batch(
            rows, round_.stream, self.draws()
        )
        names: list[str] = []

        def stacked(model: nn.Module, batch: Batch) -> Tensor:
            parts = loss_parts(self, model, batch)
            names[:] = parts
            return torch.stack(list(parts.values()), 1)

        norms = self.norms(clients.model)
        result = clipped_sum(clients.model, stacked, batch, norms, self.params.engine)
        if len(batch):
            parts = dict(zip(names, result.loss.unbind(-1), strict=True))
        else:
            parts = {}
        local = local_names(clients.model)
        kept = {name: result.sums[name] for name in local}
        sent = {name: value for name, value in result.sums.items() if name not in kept}
        noised = clients.add_noise(
            round_.release, round_.stream, sent, kept if self.params.noised == "all" else {}
        )
        # in place: with many clients these are the largest tensors of all
        mean = {
            name: value.div_(norms.weight(name)).div_(self.params.expected_batch)
            for name, value in (kept | noised.kept).items()
        }
        if clients.plan and noised.kept:
            std = clients.plan.noise_std(round_.release.name)
        else:
            std = 0.0
        self._local_step(
            clients,
            round_,
            mean,
            {name: std / norms.weight(name) / self.params.expected_batch for name in mean},
        )
        return clients.send(
            noised.sent,
            {
                **{f"loss_{name}": value for name, value in parts.items()},
                **self.diagnostics(clients, parts, round_),
                "gradient_norm": Diagnostic(result.norms, "quantiles"),
                "clipped_fraction": (result.norms > norms.clip).float(),
            },
        )

    def _local_step(
        self, clients: Clients, round_: Round, mean: Tensors, noise: Mapping[str, float]
    ) -> None:
        if not mean:
            return
        parameters = {
            name: p.detach() for name, p in clients.model.named_parameters() if name in mean
        }
        shares = self.step_shares(mean, noise, clients.state, by_client=True)
        adam_step(
            parameters,
            mean,
            clients.state,
            self.params.local_learning_rate * self._decay(round_),
            shares=shares,
        )
        if round_.step >= self.average_from * self.params.rounds:
            average_step(parameters, clients.state)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """Adam on the noisy mean plus the public terms' gradient, then the running average."""
        norms = self.norms(server.model)
        gradients = {
            name: value / (norms.weight(name) * self.params.expected_batch)
            for name, value in total.items()
        }
        std = server.noise_std(round_.release.name, self.task.clients)
        noise = {name: std / norms.weight(name) / self.params.expected_batch for name in gradients}
        shares = self.step_shares(gradients, noise, server.tensors, by_client=False)
        values = self._add_public_terms(server, round_, gradients)
        shared = shared_tensors(server.model)
        parameters = {name: p for name, p in shared.items() if name in gradients}
        adam_step(
            parameters,
            gradients,
            server.tensors,
            self.params.learning_rate * self._decay(round_),
            shares=shares,
        )
        if round_.step >= self.average_from * self.params.rounds:
            average_step(shared, server.tensors)
        return values | {
            "parameter_norm": torch.stack([p.norm() for p in parameters.values()]).norm()
        }

    def _add_public_terms(self, server: Server, round_: Round, gradients: Tensors) -> Tensors:
        """Add the public terms' gradients, also by what only the server has; returns the terms'
        values.
        """
        terms = self.public_terms(server.model, server.seeds.torch(Purpose.PENALTY, round_.stream))
        if not terms:
            return {}
        parameters = dict(server.model.named_parameters())
        own = {name: p for name, p in parameters.items() if name.startswith(self.server_only)}
        trainable = {name: p for name, p in parameters.items() if name in gradients} | own
        found = torch.autograd.grad(
            torch.stack(list(terms.values())).sum(), list(trainable.values()), allow_unused=True
        )
        for name, gradient in zip(trainable, found, strict=True):
            if gradient is not None:
                if name in gradients:
                    gradients[name] = gradients[name] + gradient
                else:
                    gradients[name] = gradient
        return {f"loss_{name}": value.detach() for name, value in terms.items()}

    def _decay(self, round_: Round) -> float:
        return float(1 - (1 - self.decay) * round_.step / self.params.rounds)
