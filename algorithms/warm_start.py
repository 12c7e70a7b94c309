"""FedHypeVAE's warm start: a decoder, a prior and, if asked, the clients' row scales and codes, from moments that the plan pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedsim.methods.messages import Server, Tensors
from fedsim.privacy.plan import Release
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import cosines, leading, polar, square_root, steady

SHARES = {
    "moments": {"mean": 0.1, "moments": 0.7, "class moments": 0.2},
    "client-moments": {"client means": 0.15, "client spreads": 0.2, "moments": 0.5, "class moments": 0.15},
}
"""The releases of each kind and how they share its budget."""
RELEASED = ("mean", "client_means", "client_counts", "gains", "codes", "means", "basis")
"""What later releases, and the clients' first step, are told of earlier ones."""
SAME = 1e-4
"""Clients whose gains and shifts differ by less than this, root mean square, do not differ."""
RADIUS = 0.45
"""Of the ball to which centred rows, which have unit norm, are clipped."""


@dataclass(frozen=True)
class Rows:
    """A cohort's rows: x ``[N, d]``, labels ``[N]``, and the number of each row's client among all clients ``[N]``."""

    x: Tensor
    y: Tensor
    client: Tensor


@dataclass(frozen=True)
class WarmStart:
    """The releases before DP-SGD, what each example adds to them, and the start that they give a decoder without hidden layer.

    With ``client-moments`` each client's mean and spreads are released first. Class moments are then those of rows that their
    client standardised, and the decoder's row scales and shifts start where they undo that, through codes that the clients are told.

    Attributes:
        kind: a key of :data:`SHARES`.
        classes, clients: how many.
        latent: most directions of the shared covariance that are kept.
        code_scale: factor on codes before they enter the hypernetwork.
        class_maps: whether every class has a map of z of its own.
    """

    kind: str
    classes: int
    clients: int
    latent: int
    code_scale: float
    class_maps: bool

    def releases(self, sgd: Release, sgd_share: float) -> tuple[Release, ...]:
        """The warm start's releases, then DP-SGD's with ``sgd_share`` of the budget in units of 1 / sigma^2."""
        # A mechanism that takes a share of the budget has 1 / sqrt(share) times the noise; many sampled steps count as their sum.
        shares = {name: share * (1 - sgd_share) for name, share in SHARES[self.kind].items()}
        noise = sgd.sample_rate * math.sqrt(sgd.steps / sgd_share)
        return (*(Release(name, 1.0, 1, share**-0.5) for name, share in shares.items()), replace(sgd, relative_noise=noise))

    def __contains__(self, release: str) -> bool:
        """Whether a release is the warm start's."""
        return release in SHARES[self.kind]

    def statistics(self, release: str, rows: Rows, released: Tensors) -> tuple[dict[str, OuterProduct], dict[str, float]]:
        """A release's outer products of every row, and their weights: of joint norm at most 1."""
        if release == "mean":
            return moments.mean_products(rows.x), moments.unit_weights(moments.MEAN_WEIGHTS)
        if release == "client means":
            return moments.client_mean_products(rows.x, rows.client, self.clients), moments.unit_weights(moments.CLIENT_WEIGHTS)
        if release == "client spreads":
            own = moments.centred(rows.x, released["client_means"][rows.client], RADIUS)
            return moments.client_spread_products(own, rows.client, self.clients), {"client_spreads": 1.0}
        centred = moments.centred(_standardised(rows, released), released["mean"], RADIUS)
        if release == "moments":
            return moments.moment_products(centred, rows.y, self.classes), moments.unit_weights(moments.MOMENT_WEIGHTS)
        return moments.class_moment_products(centred, rows.y, released["means"], released["basis"]), {"class_second": 1.0}

    def receive(self, server: Server, release: str, sums: Tensors, std: float) -> None:
        """Take in a release's noisy sums; after the last one, start the server's model.

        Args:
            server: its state.
            release: which.
            sums: as :meth:`statistics` weighs them, the weights divided out.
            std: of the noise on each sum before that.
        """
        if release == "mean":
            server.tensors["mean"] = moments.released_mean(sums)
        elif release == "client means":
            means, counts = moments.client_means(sums["client_sums"], sums["client_counts"], std)
            server.tensors |= {"client_means": means, "client_counts": counts, "mean": means.mean(0)}
        elif release == "client spreads":
            server.tensors["gains"] = moments.client_gains(sums["client_spreads"], server.tensors["client_counts"], std)
            self._start_hypernetwork(server)
        elif release == "moments":
            self._take_moments(server, moments.gaussians(sums["class_sums"], sums["class_counts"], sums["second"], std))
        else:
            tensors = server.tensors
            self._start_decoder(server, moments.class_covariances(sums["class_second"], tensors["counts"], tensors["covariance"], std))

    def _start_hypernetwork(self, server: Server) -> None:
        """Heads and codes that generate the clients' gains and means: x = gain * (x~ - mean) + client mean."""
        means, gains, mean = (server.tensors[name] for name in ("client_means", "gains", "mean"))
        model: Any = server.model
        root = math.sqrt(len(mean))
        (layer,) = model.decoder.modulated()
        clients, size = len(means), layer.scale.weight.shape[1]
        wanted = torch.cat([gains - 1, root * (means - gains * mean)], 1).double()
        _, vectors = leading(wanted @ wanted.T, min(size, clients), (SAME * math.sqrt(wanted[0].numel() * clients)) ** 2)
        used, free = _codes(vectors, min(size, clients))
        heads = torch.nn.functional.pad(wanted.T @ used, (0, size - used.shape[1])) / math.sqrt(clients)
        with torch.no_grad():
            layer.scale.weight.copy_(heads[: len(mean)])
            layer.shift.weight.copy_(heads[len(mean) :])
        codes = torch.nn.functional.pad(torch.cat([used, free], 1), (0, size - used.shape[1] - free.shape[1]))
        server.tensors["codes"] = (math.sqrt(clients) / self.code_scale * codes).float()

    def _take_moments(self, server: Server, found: moments.Gaussians) -> None:
        basis, covariance, rest = moments.principal(found.covariance, found.noise, self.latent)
        spare = self.latent - len(covariance)
        spare_variances = torch.nn.functional.pad(torch.full((spare,), 1e-9), (len(covariance), 0))
        server.tensors |= {
            "means": moments.shrunk_means(found),
            "counts": found.counts,
            "basis": torch.nn.functional.pad(basis, (0, spare)),
            "covariance": torch.nn.functional.pad(covariance, (0, spare, 0, spare)) + torch.diag(spare_variances),
            "rest": torch.tensor(rest),
        }

    def _start_decoder(self, server: Server, covariances: Tensor) -> None:
        """Prototypes, maps whose prior is N(0, I), and the observation variance, in the decoder's units."""
        model: Any = server.model
        tensors = server.tensors
        (layer,) = model.decoder.modulated()
        if not self.class_maps:
            share = tensors["counts"] / tensors["counts"].sum()
            covariances = (share[:, None, None] * covariances).sum(0, keepdim=True)
        maps = RADIUS * tensors["basis"] @ square_root(covariances)
        prototypes = tensors["mean"] + RADIUS * tensors["means"]
        columns = [maps.transpose(0, 1).flatten(1) / model.decoder.latent_scale, prototypes.T]
        with torch.no_grad():
            layer.rows.weight.copy_(math.sqrt(model.decoder.dim) * torch.cat(columns, 1))
            model.observation.shift.weight.fill_(math.log(RADIUS**2 * float(tensors["rest"])) - model.observation.initial)


def _codes(vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Orthonormal columns ``[K, count]``: those that span what clients differ by, and free ones, which heads of zero wait for.

    Args:
        vectors: orthonormal, of what clients differ by ``[K, k]``; k may be 0, where clients do not differ.
        count: at most K.
    """
    used = steady(vectors)
    others = cosines(len(vectors), count)[:, used.shape[1] :]
    return used, polar(others - used @ (used.T @ others))


def _standardised(rows: Rows, released: Mapping[str, Tensor]) -> Tensor:
    """Rows as all clients share them: each client's released mean and gains taken out."""
    if "gains" not in released:
        return rows.x
    means, gains = released["client_means"][rows.client], released["gains"][rows.client]
    shared: Tensor = (rows.x - means) / gains + released["mean"]
    return shared
