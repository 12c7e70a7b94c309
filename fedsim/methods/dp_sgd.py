"""Defines the base class of algorithms that train by federated DP-SGD on a loss per example.

In a round every client draws a Poisson sample of its examples, and the sum of their clipped
gradients goes to the server. Under ``trust: aggregate`` noise is added once, to the sum. Under
``trust: silo`` every client adds noise. The server then takes an Adam step. Clients take one local
step per round, so the sum over clients is DP-SGD on the union of their data (Abadi et al. 2016,
arXiv 1607.00133).

Some parameters stay with a client, such as an encoder or a code. By default their gradient is
clipped jointly with the gradient of the shared parameters, and the client adds noise to it.
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
    Shapes,
    Tensors,
    Values,
)
from fedsim.methods.one_shot import statistic_phase
from fedsim.methods.parameters import (
    adam_step,
    average_step,
    code_names,
    load_parameters,
    local_names,
    shared_tensors,
)
from fedsim.methods.products import Product, for_embeddings
from fedsim.methods.returned import loss_parts
from fedsim.privacy.clipping import EngineName, Norms, clipped_sum
from fedsim.privacy.noise import Deviations
from fedsim.privacy.plan import Claim, Release, Unit
from fedsim.seeds import Purpose

RELEASE = "dp-sgd"
"""The name of the release of noisy gradients."""


class DPSGDParams(Params):
    """Parameters of every algorithm that learns by DP-SGD.

    Attributes:
        rounds: the number of noisy steps.
        sample_rate: q, the probability with which each example, or each group with all its
            examples, enters a round. ``most_sampled`` lowers it on large data sets.
        most_sampled: a limit for the expected number of examples, or groups, in a round. The rate
            that is used is ``min(sample_rate, most_sampled / public size)``. The public size is the
            number of examples (or groups) rounded down to a power of two, so the expected number
            stays below twice this value. It has no effect for ``unit: client``.
        client_rate: the probability with which each client takes part in a round. It amplifies
            privacy for ``unit: client`` and must be 1 for other units.
        clip: C, the joint clip norm of one unit's contribution.
        learning_rate: Adam's initial learning rate for the shared parameters.
        local_learning_rate: Adam's initial learning rate for the per-client parameters.
        expected_batch: the public divisor of the summed gradients; it is not derived from the
            number of examples, which is private.
        precondition: the share of the budget (in 1 / sigma^2) that pays for released coordinates,
            in which embeddings are centred, of one scale and less stretched
            (:mod:`fedsim.methods.coordinates`). At 0 embeddings are used as they are.
        noised: which gradients are clipped and get noise. ``all``: those of shared and per-client
            parameters. ``shared``: those of shared parameters only.
        engine: how clipped sums are computed.
    """

    rounds: int = Field(300, ge=1)
    sample_rate: float = Field(0.2, gt=0, le=1)
    most_sampled: int = Field(4096, ge=1)
    client_rate: float = Field(1.0, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    learning_rate: float = Field(0.03, gt=0)
    local_learning_rate: float = Field(0.01, ge=0)
    expected_batch: float = Field(256, gt=0)
    precondition: float = Field(0.0, ge=0, lt=1)
    noised: Literal["all", "shared"] = "all"
    engine: EngineName = "bookkeeping"


class DPSGD(Algorithm):
    """The base class of an algorithm that trains by DP-SGD.

    It handles sampling, clipping and noise.

    A subclass supplies :meth:`build`, :meth:`loss`, :meth:`generator` and, if it needs random
    numbers per example, :meth:`draws`. The learning rate falls linearly over the rounds. The
    generator or classifier uses the mean of the parameters over late rounds, which costs no
    epsilon.

    Class attributes:
        server_only: prefixes of the names of parameters that belong to the server. The loss does
            not read them and clients do not get them. They are trained only by the server's steps
            on :meth:`public_terms`, or by steps of the subclass's own.
        decay: the share of the learning rate that is left at the end.
        average_from: the share of the rounds after which the mean of the parameters begins.
    """

    params: Any
    units: ClassVar[tuple[Unit, ...]] = ("example", "group", "client")
    server_only: ClassVar[tuple[str, ...]] = ()
    decay: ClassVar[float] = 0.05
    average_from: ClassVar[float] = 0.5

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the parts of the loss by name, ``[N]`` each; their sum is minimised.

        The loss of example n may depend on example n alone. The proof of privacy rests on this.
        """

    def draws(self) -> Shapes:
        """Return the shapes of the standard normal draws that one example's loss needs, by name."""
        return {}

    def draws_in(self, round_: Round) -> Shapes:
        """Return the draws that the loss gets in one round: by default all of :meth:`draws`.

        If a part of the loss uses draws, a subclass may leave out that part in some rounds, by
        leaving out its draws. The choice may depend on the round's number only, which is public.
        Each unit is clipped
        to the same norm in all rounds, so privacy does not change.
        """
        return self.draws()

    def public_terms(self, model: nn.Module, stream: torch.Generator) -> Mapping[str, Tensor]:
        """Return further terms of the server's objective: scalars by name.

        They depend on shared parameters alone, so they cost no epsilon.

        Args:
            model: the server's model.
            stream: random numbers of the round, if a term needs any.
        """
        return {}

    def step_shares(
        self,
        mean: Tensors,
        noise: Deviations,
        state: Tensors,
        *,
        by_client: bool,
    ) -> Tensors | None:
        """Return the fraction of Adam's step that each parameter takes, by name; None: all of it.

        Args:
            mean: the noisy mean gradients.
            noise: the standard deviation of their noise, by name.
            state: tensors that are kept between rounds; the result may add to them.
            by_client: whether the gradients are per client, ``[clients, ...]``.
        """
        return None

    def start_in(self, coordinates: Coordinates, server: Server) -> None:
        """Change initial values once the released coordinates are known.

        This is post-processing, so it costs no epsilon.
        """

    def clip_weights(self) -> Mapping[str, float]:
        """Return weights of parameters inside the joint clip, by prefix of their names.

        See :class:`fedsim.privacy.clipping.Norms`.
        """
        return {}

    def diagnostics(
        self,
        clients: Clients,
        parts: Mapping[str, Tensor],
        round_: Round,
    ) -> Mapping[str, DiagnosticLike]:
        """Return further diagnostics by name: a value per example or per client.

        They carry no noise and are never sent.

        Args:
            clients: the clients with the round's model.
            parts: the parts of the loss by name, ``[N]`` each; empty if no example was sampled.
            round_: the round.
        """
        return {}

    # --- privacy ---

    def sample_rate(self) -> float:
        """Return the probability with which each example, or each group, enters a round.

        Plan, ledger and clients use this rate. The number of examples (or groups) is private.
        Rounded down to a power of two it is treated as public (``task.public_size``). The rate
        depends on this public size alone, so it is a constant, and the theorem of DP-SGD holds for
        every constant rate. For ``unit: client`` it is the rate within a client. The plan then uses
        ``client_rate`` instead.
        """
        if self.task.unit == "client":
            return float(self.params.sample_rate)
        largest = self.params.most_sampled / self.task.public_size
        return float(min(self.params.sample_rate, largest))

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases: statistics for the coordinates, if any, then all noisy steps.

        The steps are one Poisson-subsampled Gaussian mechanism over the units.
        """
        rate = self.sample_rate()
        if self.task.unit == "client":
            rate = self.params.client_rate
        release = Release(RELEASE, rate, self.params.rounds)
        training = Phase(release, self.client_round, self.server_step, self.broadcast)
        share = self.params.precondition
        if not share:
            return (training,)
        mean, spread = coordinate_statistics(share)

        def receive(server: Server, sums: Tensors, std: Deviations) -> None:
            spread.receive(server, sums, std)
            self.start_in(Coordinates(server.tensors), server)

        def broadcast(server: Server) -> Tensors:
            return dict(server.tensors)

        statistics = (mean, replace(spread, receive=receive))
        phases = [
            statistic_phase(statistic, self.clip(), self.task, broadcast)
            for statistic in statistics
        ]
        return (*phases, training.taking(1 - share))

    def check_setting(self) -> None:
        """Refuse to sample clients unless the client is the unit.

        Raises:
            UserError: about the parameter ``client_rate``.
        """
        rate = self.params.client_rate
        if self.task.unit != "client" and rate < 1:
            raise UserError(
                "client_rate",
                f"{rate:g} lets only some clients take part, which protects no example or group",
                "give 1, or unit: client",
            )

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Test in the first noisy step that the loss of each unit depends on that unit alone.

        For units of examples and groups it tests every example; for clients, every client.

        Raises:
            NotPerExample: the loss of one unit depends on others.
            ValueError: it cannot be tested.
        """
        if round_.step or round_.release.name != RELEASE:
            return
        clients = min(2, self.task.clients)
        if self.task.unit == "client":
            check_clients(self, clients)
        else:
            check_loss(
                self,
                clients,
                lambda model: replace(self.norms(model), unit="example"),
            )

    def copies_of_examples(self) -> int:
        """Return 1 if clients keep their examples in released coordinates, else 0."""
        return int(self.params.precondition > 0)

    def scope(self) -> str:
        """Return ``joint`` if all gradients are noised, else ``shared``."""
        if self.params.noised == "all":
            return "joint"
        return "shared"

    def clip(self) -> float:
        """Return C, the norm to which a unit's gradient is clipped."""
        return float(self.params.clip)

    def claim(self) -> Claim:
        """Return "proved" if everything that depends on an example carries noise.

        It is proved for ``unit: client`` too. All that a client sends is clipped together, and
        what has no noise stays with that client.
        """
        if self.params.noised == "all" or self.task.unit == "client":
            return "proved"
        return "heuristic"

    def releases_codes(self) -> bool:
        """Return whether codes may leave their clients: only if their gradients were noised."""
        return bool(self.params.noised == "all")

    def released_names(self, model: nn.Module) -> list[str]:
        """Return the names of the codes if they may leave their clients, else none."""
        if self.releases_codes():
            return code_names(model)
        return []

    def norms(self, model: nn.Module) -> Norms:
        """Return which gradients are clipped jointly, and to which norm."""
        unclipped: tuple[str, ...] = ()
        if self.params.noised != "all":
            unclipped = tuple(local_names(model))
        return Norms(
            self.clip(),
            self.task.unit,
            self.clip_weights(),
            unclipped,
        )

    def product(self, server: Server) -> Product:
        """Return the product of embeddings, also if it was trained in coordinates."""
        coordinates = Coordinates.where_released(server.tensors)
        return for_embeddings(super().product(server), coordinates, self.task.dim)

    # --- one round ---

    def broadcast(self, server: Server) -> Tensors:
        """Return the coordinates and the shared parameters, without those in ``server_only``."""
        shared = {
            name: parameter
            for name, parameter in shared_tensors(server.model).items()
            if not name.startswith(self.server_only)
        }
        return shared | {
            name: value for name, value in server.tensors.items() if name.startswith(PREFIX)
        }

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Compute the cohort's clipped sum in one batch, and update the per-client parameters.

        Returns:
            The message with the sums of the shared parameters' gradients, and diagnostics. Under
            ``trust: silo`` the sums contain noise.
        """
        load_parameters(clients.model, broadcast)
        rows = clients.poisson(
            round_.stream,
            self.sample_rate(),
            self.params.client_rate,
        )
        converted = clients.in_coordinates(Coordinates.where_released(broadcast))
        batch = converted.batch(rows, round_.stream, self.draws_in(round_))
        part_names: list[str] = []

        def loss_matrix(model: nn.Module, batch: Batch) -> Tensor:
            parts = loss_parts(self, model, batch)
            # The result of `clipped_sum` has no names, so the names of the columns are kept here.
            part_names[:] = parts
            return torch.stack(list(parts.values()), 1)

        norms = self.norms(clients.model)
        result = clipped_sum(
            clients.model,
            loss_matrix,
            batch,
            norms,
            self.params.engine,
        )
        parts = {}
        if len(batch):
            parts = dict(zip(part_names, result.loss.unbind(-1), strict=True))
        local = {name: result.sums[name] for name in local_names(clients.model)}
        shared = {name: value for name, value in result.sums.items() if name not in local}
        protected = local
        if self.params.noised != "all":
            protected = {}
        noised = clients.add_noise(round_.release, round_.stream, shared, protected)
        # The division is in place: with many clients these are the largest tensors of all.
        mean = {
            name: value.div_(norms.weight(name)).div_(self.params.expected_batch)
            for name, value in (local | noised.kept).items()
        }
        std = 0.0  # without a plan, or if only shared gradients get noise
        if clients.plan and noised.kept:
            std = clients.plan.noise_std(round_.release.name)
        noise = {name: std / norms.weight(name) / self.params.expected_batch for name in mean}
        self._local_step(clients, round_, mean, noise)
        diagnostics: dict[str, DiagnosticLike] = {
            f"loss_{name}": value for name, value in parts.items()
        }
        diagnostics |= self.diagnostics(clients, parts, round_)
        diagnostics["gradient_norm"] = Diagnostic(result.norms, "quantiles")
        # A norm that is not a number counts as clipped, because its gradient is left out.
        diagnostics["clipped_fraction"] = (~(result.norms <= norms.clip)).float()
        return clients.send(noised.sent, diagnostics)

    def _local_step(
        self,
        clients: Clients,
        round_: Round,
        mean: Tensors,
        noise: Deviations,
    ) -> None:
        """Take an Adam step on the per-client parameters, and update their running mean.

        Args:
            clients: the clients, whose parameters and state change in place.
            round_: the round.
            mean: noisy mean gradients ``[members, ...]`` by name.
            noise: the standard deviation of their noise.
        """
        if not mean:
            return
        parameters = {
            name: p.detach() for name, p in clients.model.named_parameters() if name in mean
        }
        shares = self.step_shares(mean, noise, clients.state, by_client=True)
        learning_rate = self.params.local_learning_rate * self._decay(round_)
        adam_step(parameters, mean, clients.state, learning_rate, shares=shares)
        if self._averages(round_):
            average_step(parameters, clients.state)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        """Take an Adam step on the noisy mean and the public terms; then update the running mean.

        Args:
            server: the server, which changes in place.
            round_: the round.
            total: the noisy sums of clipped gradients, by name.

        Returns:
            The values of the public terms, and the norm of the trained parameters.
        """
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
        learning_rate = self.params.learning_rate * self._decay(round_)
        adam_step(parameters, gradients, server.tensors, learning_rate, shares=shares)
        if self._averages(round_):
            average_step(shared, server.tensors)
        norm = torch.stack([p.norm() for p in parameters.values()]).norm()
        return values | {"parameter_norm": norm}

    def _add_public_terms(self, server: Server, round_: Round, gradients: Tensors) -> Tensors:
        """Add the gradients of the public terms to ``gradients``, in place.

        These include gradients of parameters that only the server has.

        Returns:
            The values of the terms, by name with the prefix ``loss_``.
        """
        terms = self.public_terms(
            server.model,
            server.seeds.torch(Purpose.PENALTY, round_.stream),
        )
        if not terms:
            return {}
        trainable = {
            name: p
            for name, p in server.model.named_parameters()
            if name in gradients or name.startswith(self.server_only)
        }
        total = torch.stack(list(terms.values())).sum()
        term_gradients = torch.autograd.grad(
            total,
            list(trainable.values()),
            allow_unused=True,
        )
        for name, gradient in zip(trainable, term_gradients, strict=True):
            if gradient is None:
                continue
            if name in gradients:
                gradients[name] = gradients[name] + gradient
            else:
                gradients[name] = gradient
        return {f"loss_{name}": value.detach() for name, value in terms.items()}

    def _averages(self, round_: Round) -> bool:
        """Return whether the running mean of the parameters includes this round."""
        return bool(round_.step >= self.average_from * self.params.rounds)

    def _decay(self, round_: Round) -> float:
        """Return the share of the learning rate that is left in a round."""
        return float(1 - (1 - self.decay) * round_.step / self.params.rounds)
