"""Algorithms that release statistics: each release is one round in which clients send clipped sums of per-example outer products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Diagnostic, Message, Server, Tensors
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Release, Unit
from fedsim.privacy.statistics.outer_products import OuterProduct, clipped_statistics


def statistics_message(clients: Clients, round_: int, release: Release, products: Mapping[str, OuterProduct], norms: Norms) -> Message:
    """The cohort's clipped sums of ``products`` over all its rows, with its noise if clients are silos.

    Args:
        clients: the cohort; every row takes part, so ``release.sample_rate`` is 1.
        round_: the round.
        release: the mechanism in the plan.
        products: one outer product per row of all members together, by name.
        norms: joint clip norm and weights; the caller divides by the weights after the noise.
    """
    sums, joint = clipped_statistics(products, norms)
    noised = clients.add_noise(release, round_, sums)
    return Message(
        sums=noised.sent,
        noise=noised.fingerprint,
        uplink_bytes=4 * sum(value.numel() for value in sums.values()) * len(clients.members),
        diagnostics={
            "gradient_norm": Diagnostic(joint.tolist(), "quantiles"),
            "clipped_fraction": (joint > norms.clip * (1 + 1e-6)).float().tolist(),
        },
    )


class OneShot(Algorithm):
    """Base class of an algorithm that releases statistics and samples from what they say.

    A subclass supplies :meth:`releases` (one step each, sample rate 1), :meth:`statistics`, :meth:`receive` and :meth:`generator`. All
    statistics are scaled to a joint norm of at most 1 an example.
    """

    units: ClassVar[tuple[Unit, ...]] = ("example",)

    @abstractmethod
    def statistics(self, release: str, x: Tensor, y: Tensor, broadcast: Tensors) -> tuple[Mapping[str, OuterProduct], Mapping[str, float]]:
        """Outer products of every row by name, and their weights in the joint norm."""

    @abstractmethod
    def receive(self, server: Server, release: str, sums: Tensors) -> None:
        """Take the noisy sums (weights divided out) into ``server.tensors``."""

    def clip(self) -> float:
        """Statistics have joint norm at most 1."""
        return 1.0

    def build(self, clients: int) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def broadcast(self, server: Server) -> Tensors:
        """Everything released so far."""
        return dict(server.tensors)

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        """The clipped sums over all rows of the cohort."""
        products, weights = self.statistics(release.name, torch.cat(clients.x), torch.cat(clients.y), broadcast)
        return statistics_message(clients, round_, release, products, Norms(self.clip(), weights=weights))

    def server_step(self, server: Server, round_: int, release: Release, total: Tensors) -> Mapping[str, float]:
        """Divide the weights out and hand the sums over."""
        empty = torch.zeros(0, self.task.dim)
        _, weights = self.statistics(release.name, empty, torch.zeros(0, dtype=torch.long), dict(server.tensors))
        norms = Norms(self.clip(), weights=weights)
        self.receive(server, release.name, {name: value / norms.weight(name) for name, value in total.items()})
        return {}
