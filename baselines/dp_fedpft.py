"""DP-FedPFT: noisy class Gaussians of every client; each sends them once, and the server draws from all of them.

A client releases sums, counts and squares of the rows of each class by one Gaussian mechanism of its own, whatever the trust: one row
changes one client's statistics of one class, whose joint norm is clipped to 1. Proved; means, variances and samples are post-processing.
Different here: the paper takes counts for public, here they are paid for; its theorem is for a full covariance, which at a client's number
of rows is all noise, so the default is the diagonal.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.fedpft import ClientMixtures
from fedsim.methods import (
    Clients,
    Diagnostic,
    Message,
    Norms,
    OuterProduct,
    Params,
    Phase,
    Release,
    Round,
    Server,
    Tensors,
    Unit,
    clipped_statistics,
    moments,
    one_hot,
    register,
    rounded,
    square_root,
    unit_weights,
)

CLIENT_CLASS_WEIGHTS = {"sums": 1.0, "counts": 0.15, "squares": 1.0}
LEAST_ENTRY_VARIANCE = 1e-6
"""Of an entry of a row of norm 1, or of a direction."""


class DPFedPFTParams(Params):
    """Parameters of DP-FedPFT.

    Attributes:
        covariance: of a class at a client: ``diag`` or ``full``.
    """

    covariance: Literal["diag", "full"] = "diag"


@register("dp-fedpft")
class DPFedPFT(ClientMixtures):
    """One Gaussian mechanism at every client; its Gaussians, one a class, are post-processing."""

    source = "Beitollahi et al. 2024, arXiv 2402.01862; Gaussian mechanism: Balle and Wang 2018, arXiv 1805.06530"
    Params = DPFedPFTParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")

    def phases(self) -> tuple[Phase, ...]:
        """One round."""
        return (
            Phase(Release("gaussians", 1.0, 1), self.client_round, self.server_step, self.broadcast, unit_weights(CLIENT_CLASS_WEIGHTS)),
        )

    def clip(self) -> float:
        """Statistics have joint norm at most 1."""
        return 1.0

    def noise_at_clients(self) -> bool:
        """Every client's statistics carry its own noise."""
        return True

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        """Every member's statistics, noised by itself."""
        r, y = moments.in_unit_ball(clients.pooled.x), clients.layout.client * self.task.classes + clients.pooled.y
        hot, norms = one_hot(y, len(clients.x) * self.task.classes), Norms(1.0, weights=unit_weights(CLIENT_CLASS_WEIGHTS))
        squares = (hot, r * r) if self.params.covariance == "diag" else ((hot.unsqueeze(2) * r.unsqueeze(1)).flatten(1), r)
        products = {"sums": OuterProduct(hot, r), "counts": OuterProduct(hot, torch.ones_like(r[:, :1])), "squares": OuterProduct(*squares)}
        sums, joint = clipped_statistics(products, norms, clients.all_groups)
        kept = {name: value.view(len(clients.x), self.task.classes, -1) for name, value in sums.items()}
        noised = rounded(clients.add_noise(round_.release, round_.stream, {}, kept).kept)
        sent = {f"{name}.{client}": value[i] for name, value in noised.items() for i, client in enumerate(clients.members)}
        weight = sum(value.nbytes for value in sent.values())
        return clients.send(sent, {"gradient_norm": Diagnostic(joint, "quantiles")}, uplink_bytes=weight)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> dict[str, float]:
        """A Gaussian of every class of every client; classes whose count does not stand out of its noise weigh nothing."""
        weights = unit_weights(CLIENT_CLASS_WEIGHTS)
        std = {name: server.noise_std(round_.release.name, 1) / weight for name, weight in weights.items()}
        for client in range(self.task.clients):
            sums, seen, squares = (total[f"{name}.{client}"] / weights[name] for name in CLIENT_CLASS_WEIGHTS)
            counts = moments.counts_above_noise(seen, std["counts"])
            means, noise = sums / counts, (std["sums"] / counts).square()
            server.tensors |= {
                f"means.{client}": means[:, None],
                f"roots.{client}": self.roots(squares / counts, means, noise)[:, None],
                f"mass.{client}": torch.where(seen > 2 * std["counts"], seen, 0.0),
                f"counts.{client}": seen[:, 0],
            }
        return {}

    def roots(self, second: Tensor, means: Tensor, noise: Tensor) -> Tensor:
        """Roots of covariances, ``[C, d]`` or ``[C, d, d]``, from second moments of as many numbers; ``noise`` ``[C, 1]`` is the means'."""
        if self.params.covariance == "diag":
            return (second - means.square() + noise).clamp_min(LEAST_ENTRY_VARIANCE).sqrt()
        second = second.view(len(means), self.task.dim, self.task.dim)
        one = torch.eye(self.task.dim, device=means.device)
        return square_root((second + second.transpose(1, 2)) / 2 - means[:, :, None] * means[:, None] + noise[:, :, None] * one)

    def label_counts(self, server: Server) -> Tensor:
        """Of all clients."""
        return torch.stack([server.tensors[f"counts.{client}"] for client in range(self.task.clients)]).sum(0)
