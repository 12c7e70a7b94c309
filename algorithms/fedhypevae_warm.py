"""FedHypeVAE, warm: a linear-Gaussian FedHypeVAE in closed form; decoder and prior are estimated
from released moments.

Five Gaussian mechanisms: the mean; how far rows are from it; class means; moments of the rows about
these; and moments of every class in the few directions that set classes apart.
The decoder is affine in z, so its exact posterior and its maximum likelihood are known, and noise
is best spent on what they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from algorithms import class_block
from algorithms.class_block import BlockGenerator
from fedsim.device import to_device
from fedsim.methods.algorithm import Phase
from fedsim.methods.coordinates import (
    COORDINATE_NAMES,
    MEAN_SHARE,
    Coordinates,
    clipped_square,
    coordinate_statistics,
)
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import OneShot, OneShotParams, Rows, Statistic
from fedsim.plugins.registry import register
from fedsim.privacy.statistics import moments, shrinkage
from fedsim.privacy.statistics.outer_products import OuterProduct, unit_weights
from fedsim.privacy.statistics.spectral import descending

SHARES = {"coordinates": 0.12, "class means": 0.37, "moments": 0.42, "class moments": 0.09}
"""How the releases share the budget, in units of 1 / sigma^2."""
MOMENT_WEIGHTS = {"class_sums": 0.5, "class_counts": 0.15, "second": 1.0}
"""Where rows are many; class means are known by then."""


@dataclass(frozen=True)
class TunedWarm:
    """Constants of the warm form: ours, none is the paper's, which has no closed form.
    docs/fedhypevae.md says what was tuned on what.
    """

    clip: float = 0.7  # coordinates are clipped at this share of their root mean square norm
    # rows are taken about their classes' means where shrinkage leaves more than this share of
    # these, on average
    known: float = 0.5
    # up to this root mean square eigenvalue of its noise, a row, the second moment keeps its
    # weight; beyond, sums and counts gain
    visible: float = 0.025
    most_excess: float = 20.0  # the second moment's weight is divided by this at most
    most_counts: float = 0.5  # the largest weight of class counts
    least_variance: float = 0.02  # a variance is no smaller share of what it is a part of
    # eigenvalues below this share of their mean are not told apart from it where the noise is
    # larger than it
    floor: float = 0.6
    least_eigenvalue: float = 0.02  # in units of their mean
    resolution: float = 0.12  # of the block's covariance, in units of its own
    block: int = 512  # directions of the block, at most


TUNED = TunedWarm()
SENT_TO_CLIENTS = (
    "mean",
    *COORDINATE_NAMES,
    "emphasis",
    "class_centres",
    "radius",
    "basis",
    "coordinates",
)
"""What clients need of what was released."""


class FedHypeVAEWarmParams(OneShotParams):
    """Parameters of FedHypeVAE, warm.

    Attributes:
        block: most directions in which every class has a covariance of its own; the noise allows
            fewer at a small epsilon.
        paired: rows of a label are drawn in pairs, and pairs orthogonal, to balance what says
            nothing of a class; false: each by itself.
    """

    block: int = Field(TUNED.block, ge=1)
    paired: bool = True


@register("fedhypevae-warm")
class FedHypeVAEWarm(OneShot):
    """Coordinates, class means, moments, moments of classes in a block; one generator for all
    clients.
    """

    source = "arXiv 2601.00785, linear-Gaussian, by moments; eigenvalues: arXiv 1610.08104"
    Params: ClassVar[type[FedHypeVAEWarmParams]] = FedHypeVAEWarmParams
    shares: ClassVar[Mapping[str, float]] = SHARES

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; class means; moments of the rows about them; class moments in the block."""
        share = self.shares
        return (
            *coordinate_statistics(
                share["coordinates"],
                self.about,
                self.mean_statistic(MEAN_SHARE * share["coordinates"]),
            ),
            Statistic(
                "class means",
                share["class means"],
                moments.CLASS_MEAN_WEIGHTS,
                self.means_products,
                self.receive_means,
            ),
            Statistic(
                "moments",
                share["moments"],
                MOMENT_WEIGHTS,
                self.moment_products,
                self.receive_moments,
            ),
            Statistic(
                "class moments",
                share["class moments"],
                class_block.CLASS_WEIGHTS,
                self.class_products,
                self.receive_classes,
            ),
        )

    def mean_statistic(self, share: float) -> Statistic:
        """The mean of all rows."""
        return Statistic(
            "mean",
            share,
            moments.MEAN_WEIGHTS,
            lambda rows, broadcast: moments.mean_products(rows.x),
            self.receive_mean,
        )

    def phases(self) -> tuple[Phase, ...]:
        """One a statistic; the moments are what a report draws."""
        return tuple(self.phase(each, main=each.name == "moments") for each in self.statistics())

    def broadcast(self, server: Server) -> Tensors:
        """What has been released, as far as clients need it."""
        return {name: server.tensors[name] for name in SENT_TO_CLIENTS if name in server.tensors}

    # --- the mean ---

    def receive_mean(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The centre; rows of unit norm are as far from it as what is left of their norm."""
        released = moments.released_mean(sums, std)
        server.tensors |= {
            "mean": released.mean,
            "rows": released.rows,
            "square": (1 - released.mean.square().sum()).clamp_min(moments.LEAST_SQUARE),
            "error": released.error,
            "emphasis": self.emphasis(server, released.rows),
        }

    def emphasis(self, server: Server, rows: Tensor) -> Tensor:
        """By what the weights of the moments are multiplied, in their order ``[3]``; their joint
        norm stays the same.

        Of few rows in many dimensions the second moment says little and class counts are uncertain.
        """
        noise = (
            server.noise_std("moments", self.task.clients)
            / self.clip()
            / unit_weights(MOMENT_WEIGHTS)["second"]
        )
        excess = (noise * (self.dim / 2) ** 0.5 / rows / TUNED.visible).clamp(1, TUNED.most_excess)
        sums, counts, second = MOMENT_WEIGHTS.values()
        wanted = torch.stack(
            [
                torch.full_like(excess, sums),
                (counts * excess.sqrt()).clamp_max(TUNED.most_counts),
                second / excess,
            ]
        )
        usual = to_device(torch.tensor([sums, counts, second]), rows.device)
        found: Tensor = wanted / wanted.norm() / (usual / usual.norm())
        return found

    # --- class means ---

    def about(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Rows about the centre."""
        return rows.x - broadcast["mean"]

    def in_coordinates(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Rows in released coordinates ``[N, d]``, of mean squared norm 1."""
        return Coordinates(broadcast).of_centred(self.about(rows, broadcast))

    def means_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Class sums and counts of the clipped rows."""
        return moments.class_mean_products(
            moments.in_unit_ball(self.in_coordinates(rows, broadcast) / TUNED.clip),
            rows.y,
            self.task.classes,
        )

    def receive_means(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Class means, each with its noise; where they stand out of it, rows are taken about them
        from here on, and vary less.
        """
        broadcast = server.tensors
        counts = moments.counts_above_noise(sums["class_counts"][:, 0], std["class_counts"])
        variance = 1 - self.error(broadcast)
        means = sums["class_sums"] / counts[:, None] * TUNED.clip
        noise = (std["class_sums"] / counts * TUNED.clip).square()
        near = shrinkage.james_stein(means.double(), noise.double(), steps=shrinkage.STEPS).to(
            means.dtype
        )
        known = (near.norm(dim=1) / means.norm(dim=1).clamp_min(1e-12)).mean() > TUNED.known
        near = torch.where(known, near, 0.0)
        between = (counts / counts.sum() * (near * means).sum(1)).sum()
        inner = torch.maximum(variance - between, TUNED.least_variance * variance)
        server.tensors |= {
            "class_means": means,
            "class_means_noise": noise,
            "class_counts": sums["class_counts"][:, 0],
            "class_counts_noise": counts.new_tensor(std["class_counts"] ** 2),
            "known": known,
            "class_centres": near,
            "radius": TUNED.clip * (inner / variance).sqrt(),
        }

    def error(self, broadcast: Tensors) -> Tensor:
        """The squared distance of the centre from the rows' mean, in coordinates, as it is
        expected.
        """
        return (broadcast["error"] / Coordinates(broadcast).scale.square()).clamp_max(
            1 - TUNED.least_variance
        )

    # --- moments ---

    def moment_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Class sums and counts, and one second moment, of the clipped rows about their classes'
        centres, each times its emphasis.
        """
        r = moments.in_unit_ball(
            (self.in_coordinates(rows, broadcast) - broadcast["class_centres"][rows.y])
            / broadcast["radius"]
        )
        emphasis = dict(zip(MOMENT_WEIGHTS, broadcast["emphasis"], strict=True))
        found = moments.moment_products(r, rows.y, self.task.classes)
        return {
            name: OuterProduct(emphasis[name] * product.left, product.right)
            for name, product in found.items()
        }

    def receive_moments(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Class means and the covariance within classes, as they are believed, and the block in
        which classes are told again.
        """
        broadcast = server.tensors
        emphasis = dict(zip(MOMENT_WEIGHTS, broadcast["emphasis"].tolist(), strict=True))
        sums = {name: sums[name] / by for name, by in emphasis.items()}
        std = {name: std[name] / by for name, by in emphasis.items()}
        radius = broadcast["radius"]
        found = moments.gaussians(
            sums, std, clipped_square(broadcast, torch.full_like(radius, TUNED.clip))
        )
        again = found.counts.new_tensor(std["class_counts"] ** 2)
        counts, error = shrinkage.of_two(
            broadcast["class_counts"],
            broadcast["class_counts_noise"],
            sums["class_counts"][:, 0],
            again,
        )
        counts = moments.counts_above_noise(counts, float(error.sqrt()))
        means, noise = shrinkage.of_two(
            broadcast["class_means"] / radius,
            broadcast["class_means_noise"] / radius.square(),
            broadcast["class_centres"] / radius + found.means,
            found.mean_noise,
        )
        spread, along = descending(found.second)
        if broadcast["known"]:
            seen = spread
            vectors = along
        else:
            seen, vectors = descending(moments.within(found.second, means, noise, counts))
        means = (
            shrinkage.shrunk_along(means.double() @ along, noise.double(), spread) @ along.T
        ).float()
        server.tensors["counts"] = counts
        server.tensors |= self.decoder(server, means, believed(seen, found.noise), vectors)

    def decoder(self, server: Server, means: Tensor, values: Tensor, vectors: Tensor) -> Tensors:
        """The affine decoder and its block, of class means ``[C, d]`` and eigenvalues ``[d]`` and
        vectors ``[d, d]`` of the covariance.
        """
        root = ((vectors * values.sqrt()) @ vectors.T).float()
        white = ((vectors * values.rsqrt()) @ vectors.T).float()
        centre = means.mean(0)
        released = Coordinates(server.tensors)
        outward = released.apart(root)
        block = class_block.block_of(means, values, vectors, self.block_size(server), outward)
        # the classes' common mean outside of the block
        middle = centre - (centre @ white @ block.directions) @ block.directions.T @ root
        return {
            "centre": released.mean,
            "basis": released.of_centred(block.basis.T).T,
            "directions": block.directions,
            "coordinates": means @ block.basis,
            "root": outward,
            "middle": released.apart(middle),
        }

    def block_size(self, server: Server) -> int:
        """As many directions as the noise of the class moments leaves visible in C classes of the
        released counts' harmonic mean.
        """
        counts = server.tensors["counts"]
        typical = len(counts) * float(len(counts) / (1 / counts).sum())
        weight = unit_weights(class_block.CLASS_WEIGHTS)["class_second"]
        noise = (
            server.noise_std("class moments", self.task.clients)
            / self.clip()
            / weight
            * class_block.TUNED.reach**2
        )
        most: int = self.params.block
        return max(
            self.task.classes - 1,
            min(most, shrinkage.affordable(typical, noise, TUNED.resolution), self.dim),
        )

    # --- classes ---

    def class_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Sums and second moments of every class's residuals in the block."""
        u = class_block.residuals(
            self.about(rows, broadcast) / broadcast["radius"],
            rows.y,
            broadcast["basis"],
            broadcast["coordinates"],
        )
        return class_block.class_products(u, rows.y, self.task.classes)

    def receive_classes(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """The prior's mean and covariance for every class."""
        counts = server.tensors["counts"]
        start = server.tensors["coordinates"]
        size = start.shape[1]
        reach = class_block.reach(size)
        off = shrinkage.james_stein(
            sums["class_sums"] / counts[:, None], (std["class_sums"] / counts).square()
        )
        second = sums["class_second"].view(len(counts), size, size)
        second = (second + second.transpose(1, 2)) / 2 / counts[:, None, None]
        means = start + reach * off
        covariances = shrinkage.pooled_and_own(second, off, counts, std["class_second"] / 2**0.5)
        server.tensors |= {"prior_means": means, "prior_covariances": reach**2 * covariances}

    def class_rows(self, server: Server) -> Tensor:
        """Those of class means and moments together."""
        return server.tensors["counts"]

    def generator(self, server: Server) -> BlockGenerator:
        """One for all."""
        return BlockGenerator(server.tensors, self.params.paired)


def believed(seen: Tensor, noise: float) -> Tensor:
    """Descending eigenvalues ``[d]`` of the covariance, from those that are seen; their sum is
    kept.
    """
    mean = float(seen.mean().clamp_min(1e-9))
    floor = max(TUNED.least_eigenvalue * mean, TUNED.floor * min(mean, noise * len(seen) ** 0.5))
    values = shrinkage.free_eigenvalues(seen, noise).clamp_min(floor)
    return values * (mean * len(seen) / values.sum())
