"""Algorithms that are a loss per example: federated DP-SGD with one step a round.

A round: every client draws a Poisson sample, the sum of its clipped per-example gradients goes to the server, noise is added (once to
the sum under ``trust: aggregate``, by every client under ``trust: silo``), the server takes an Adam step (Abadi et al. 2016, arXiv
1607.00133; one local step a round, so the sum over clients is DP-SGD on the union of their data). The gradient by what stays with a
client (encoder, code) is clipped jointly with the shared part and gets noise of its own at the client.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.algorithm import Algorithm, Clients, Message, Params, Server, Tensors, local_names, shared_tensors
from fedsim.batch import Batch
from fedsim.optimise import adam_step, average_step
from fedsim.privacy.clipping import Norms, clipped_sum
from fedsim.privacy.ledger import Entry
from fedsim.privacy.noise import fingerprint, gaussian
from fedsim.privacy.plan import Claim, Release
from fedsim.seeds import Purpose

RELEASE = "dp-sgd"


class DPSGDParams(Params):
    """Parameters of every algorithm that learns by DP-SGD.

    Attributes:
        rounds: noisy steps.
        sample_rate: q, the probability with which each example enters a round.
        client_rate: the probability with which each client takes part; it amplifies for ``unit: client`` and must be 1 otherwise.
        clip: C, the joint clip norm of one unit's contribution.
        learning_rate, local_learning_rate: Adam's, for the shared and for the per-client parameters.
        decay: the learning rate falls linearly to this share of itself over the rounds.
        average_from: the generator is the mean of the iterates from this share of the rounds on (post-processing, free).
        expected_batch: public divisor of the summed gradients; not derived from how many examples there are.
        scope: ``joint`` clips and noises shared and per-client gradients; ``hypernetwork`` the shared ones only.
        engine: how clipped sums are computed.
    """

    rounds: int = Field(300, ge=1)
    sample_rate: float = Field(0.2, gt=0, le=1)
    client_rate: float = Field(1.0, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    learning_rate: float = Field(0.03, gt=0)
    local_learning_rate: float = Field(0.01, ge=0)
    decay: float = Field(0.05, gt=0, le=1)
    average_from: float = Field(0.5, ge=0, lt=1)
    expected_batch: float = Field(256, gt=0)
    scope: Literal["joint", "hypernetwork"] = "joint"
    engine: Literal["bookkeeping", "opacus", "vmap"] = "bookkeeping"


class DPSGD(Algorithm):
    """Base class of an algorithm that is a loss per example; everything about privacy is done here.

    A subclass supplies :meth:`build`, :meth:`loss`, :meth:`generator` and, if it needs random numbers per example, :meth:`noise`.
    """

    params: Any

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Parts of the loss by name, ``[N]`` each; their sum is minimised; row n depends on row n alone."""

    def noise(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the standard normal draws that one example's loss needs, by name."""
        return {}

    def penalties(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Terms of the server's objective, scalars by name, that depend on shared parameters alone, so they cost no privacy."""
        return {}

    def balance(self) -> Mapping[str, float]:
        """Weights of parameters inside the joint clip, by name prefix (see :class:`fedsim.privacy.clipping.Norms`)."""
        return {}

    def observe(self, clients: Clients, parts: Mapping[str, Tensor], round_: int) -> Mapping[str, list[Any]]:
        """Diagnostics by name, a value per example or per client, from the round's model and loss parts; not private, never sent."""
        return {}

    # --- privacy ---

    def releases(self) -> tuple[Release, ...]:
        """All rounds are one Poisson-subsampled Gaussian mechanism, over examples or over clients."""
        rate = self.params.client_rate if self.task.unit == "client" else self.params.sample_rate
        return (Release(RELEASE, rate, self.params.rounds),)

    def scope(self) -> str:
        """As the parameters say."""
        return str(self.params.scope)

    def clip(self) -> float:
        """As the parameters say."""
        return float(self.params.clip)

    def claim(self) -> Claim:
        """Proved if everything that depends on an example carries noise, or if a client's whole contribution is what is clipped."""
        return "proved" if self.params.scope == "joint" or self.task.unit == "client" else "heuristic"

    def releases_codes(self) -> bool:
        """Codes that were never noised do not leave their clients."""
        return bool(self.params.scope == "joint")

    def norms(self, model: nn.Module) -> Norms:
        """What is clipped, jointly, to what."""
        free = () if self.params.scope == "joint" else tuple(local_names(model))
        return Norms(self.clip(), self.task.unit, self.balance(), free)

    # --- one round ---

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        """The cohort's clipped sum in one batch; per-client parameters take a noisy step of their own."""
        _load(clients.model, broadcast)
        rows = clients.poisson(round_, self.params.sample_rate, self.params.client_rate)
        batch = clients.batch(rows, round_, self.noise())
        names: list[str] = []

        def stacked(model: nn.Module, batch: Batch) -> Tensor:
            parts = self.loss(model, batch)
            names[:] = parts
            return torch.stack(list(parts.values()), 1)

        norms = self.norms(clients.model)
        result = clipped_sum(clients.model, stacked, batch, norms, self.params.engine)
        parts = dict(zip(names, result.loss.unbind(-1), strict=True)) if len(batch) else {}
        local = local_names(clients.model)
        noise, drawn, multiplier = self._client_noise(clients, round_, release, result.sums, local)
        noisy = {name: value + noise[name] if name in noise else value for name, value in result.sums.items()}
        self._local_step(clients, round_, {name: noisy[name] / norms.weight(name) for name in local})
        sums = {name: value for name, value in noisy.items() if name not in local}
        return Message(
            sums,
            tuple(entries(clients, release, round_, multiplier)),
            sum(fingerprint({"rows": chosen}) for chosen in rows),
            drawn,
            4 * sum(value.numel() for value in sums.values()) * len(clients.members),
            {
                **{f"loss_{name}": value.tolist() for name, value in parts.items()},
                **self.observe(clients, parts, round_),
                "gradient_norm": result.norms.tolist(),
                "clipped_fraction": (result.norms > norms.clip).float().tolist(),
            },
        )

    def _client_noise(self, clients: Clients, round_: int, release: Release, sums: Tensors, local: list[str]) -> tuple[Tensors, int, float]:
        """Noise that clients add themselves, to what stays with them and as silos to what they send; its fingerprint, its multiplier."""
        if clients.plan is None:
            return {}, 0, math.inf
        sent = [name for name in sums if name not in local] if self.task.trust == "silo" else []
        kept = local if self.params.scope == "joint" else []
        shapes = {name: tuple(sums[name].shape) for name in sent} | {name: tuple(sums[name].shape[1:]) for name in kept}
        noise = {name: torch.zeros_like(sums[name]) for name in shapes}
        std, drawn = clients.plan.noise_std(release.name), 0
        for position, client in enumerate(clients.members if shapes else ()):
            draw = gaussian(shapes, std, clients.seeds.torch(Purpose.NOISE, round_, client))
            drawn += fingerprint(draw)
            for name in sent:
                noise[name] += draw[name]
            for name in kept:
                noise[name][position] = draw[name]
        return noise, drawn, std / clients.plan.sensitivity if shapes else math.inf

    def _local_step(self, clients: Clients, round_: int, gradients: Tensors) -> None:
        if not gradients:
            return
        parameters = {name: p.detach() for name, p in clients.model.named_parameters() if name in gradients}
        mean = {name: value / self.params.expected_batch for name, value in gradients.items()}
        adam_step(parameters, mean, clients.state, self.params.local_learning_rate * self._decay(round_))
        if self.step(round_) >= self.params.average_from * self.params.rounds:
            average_step(parameters, clients.state)

    def server_step(self, server: Server, round_: int, release: Release, total: Tensors) -> Mapping[str, float]:
        """Adam on the noisy mean plus the penalties' gradient, then the running average."""
        norms = self.norms(server.model)
        gradients = {name: value / (norms.weight(name) * self.params.expected_batch) for name, value in total.items()}
        penalties = self.penalties(server.model)
        values = {f"loss_{name}": float(value.detach()) for name, value in penalties.items()}
        if penalties:
            trainable = {name: p for name, p in server.model.named_parameters() if name in gradients}
            found = torch.autograd.grad(torch.stack(list(penalties.values())).sum(), list(trainable.values()), allow_unused=True)
            for name, gradient in zip(trainable, found, strict=True):
                if gradient is not None:
                    gradients[name] = gradients[name] + gradient
        shared = shared_tensors(server.model)
        adam_step(shared, gradients, server.tensors, self.params.learning_rate * self._decay(round_))
        if self.step(round_) >= self.params.average_from * self.params.rounds:
            average_step(shared, server.tensors)
        values["parameter_norm"] = float(torch.stack([p.norm() for p in shared.values()]).norm())
        return values

    def step(self, round_: int) -> int:
        """How many DP-SGD steps came before ``round_``; other releases come first."""
        return round_ - sum(release.steps for release in self.releases() if release.name != RELEASE)

    def _decay(self, round_: int) -> float:
        return float(1 - (1 - self.params.decay) * self.step(round_) / self.params.rounds)


def averaged_model(server: Server) -> nn.Module:
    """The server's model with the averaged iterates as its shared parameters."""
    _load(server.model, {name: server.tensors.get(f"average.{name}", p) for name, p in shared_tensors(server.model).items()})
    return server.model


def entries(clients: Clients, release: Release, round_: int, multiplier: float) -> list[Entry]:
    """One ledger entry for every member: an empty sample is a step too.

    Args:
        clients: the cohort.
        release: the mechanism that ran.
        round_: when.
        multiplier: of the noise that the clients added, over the sensitivity; ``inf`` if all noise is the server's.
    """
    if clients.plan is None:
        return []
    return [Entry(release.name, round_, client, multiplier, release.sample_rate) for client in clients.members]


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
