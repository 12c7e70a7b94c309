"""FedHypeVAE's warm start: a decoder, a prior and, if asked, the clients' row scales and codes, from moments that the plan pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.device import to_device
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows, Statistic, overall_mean
from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.moments import Products
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

    def statistics(self, share: float) -> tuple[Statistic, ...]:
        """What is released for a ``share`` of the whole budget; after the last one the server's model has its start."""
        shares = {name: own * share for name, own in SHARES[self.kind].items()}

        def statistic(name: str, weights: Mapping[str, float], products: Any, receive: Any) -> Statistic:
            return Statistic(name, shares[name], weights, products, receive)

        first = (
            (overall_mean(shares["mean"]),)
            if self.kind == "moments"
            else (
                statistic("client means", moments.CLIENT_WEIGHTS, self.client_mean_products, self.receive_client_means),
                statistic("client spreads", {"client_spreads": 1.0}, self.client_spread_products, self.receive_client_spreads),
            )
        )
        return (
            *first,
            statistic("moments", moments.MOMENT_WEIGHTS, self.moment_products, self.receive_moments),
            statistic("class moments", {"class_second": 1.0}, self.class_moment_products, self.receive_class_moments),
        )

    def client_mean_products(self, rows: Rows, told: Tensors) -> Products:
        """Every client's sum and count."""
        return moments.client_mean_products(rows.x, rows.client, self.clients)

    def receive_client_means(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Every client's mean and count, and the overall mean."""
        means, counts = moments.client_means(sums["client_sums"], sums["client_counts"], std)
        server.tensors |= {"client_means": means, "client_counts": counts, "mean": means.mean(0)}

    def client_spread_products(self, rows: Rows, told: Tensors) -> Products:
        """Absolute values of the rows about their client's mean."""
        own = moments.centred(rows.x, told["client_means"][rows.client], RADIUS)
        return moments.client_spread_products(own, rows.client, self.clients)

    def receive_client_spreads(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Every client's gains, and the heads and codes that undo them."""
        server.tensors["gains"] = moments.client_gains(sums["client_spreads"], server.tensors["client_counts"], std["client_spreads"])
        self._start_hypernetwork(server)

    def moment_products(self, rows: Rows, told: Tensors) -> Products:
        """Class sums and counts, and one second moment, of the centred rows."""
        return moments.moment_products(_centred(rows, told), rows.y, self.classes)

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Shrunk class means, and the covariance's leading directions."""
        self._take_moments(server, moments.gaussians(sums["class_sums"], sums["class_counts"], sums["second"], std))

    def class_moment_products(self, rows: Rows, told: Tensors) -> Products:
        """Every class's second moment in the leading directions."""
        return moments.class_moment_products(_centred(rows, told), rows.y, told["means"], told["basis"])

    def receive_class_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Every class's covariance, with which the decoder starts."""
        own = server.tensors
        covariances = moments.class_covariances(sums["class_second"], own["counts"], own["covariance"], std["class_second"])
        self._start_decoder(server, covariances)

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
        spare_variances = torch.nn.functional.pad(covariance.new_full((spare,), 1e-9), (len(covariance), 0))
        server.tensors |= {
            "means": moments.shrunk_means(found),
            "counts": found.counts,
            "basis": torch.nn.functional.pad(basis, (0, spare)),
            "covariance": torch.nn.functional.pad(covariance, (0, spare, 0, spare)) + torch.diag(spare_variances),
            "rest": to_device(torch.tensor(rest), server.device),
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
    others = to_device(cosines(len(vectors), count), used.device)[:, used.shape[1] :]
    return used, polar(others - used @ (used.T @ others))


def _centred(rows: Rows, released: Mapping[str, Tensor]) -> Tensor:
    """The standardised rows about the overall mean, clipped, in units of :data:`RADIUS`."""
    return moments.centred(_standardised(rows, released), released["mean"], RADIUS)


def _standardised(rows: Rows, released: Mapping[str, Tensor]) -> Tensor:
    """Rows as all clients share them: each client's released mean and gains taken out."""
    if "gains" not in released:
        return rows.x
    means, gains = released["client_means"][rows.client], released["gains"][rows.client]
    shared: Tensor = (rows.x - means) / gains + released["mean"]
    return shared
