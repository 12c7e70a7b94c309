"""FedHypeVAE, warm: a linear-Gaussian FedHypeVAE in closed form, estimated from released moments.

Five Gaussian mechanisms release, one after the other: the mean of the rows; their directions and
distances from it; class means; moments of the rows about the class means; and moments of every
class in the block, the few directions that separate classes. The decoder is affine in z, so the
exact posterior and the maximum-likelihood estimate follow from these moments. The budget pays for
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from fedsim.methods.one_shot import OneShot, OneShotParams, Rows, Statistic, overall_mean
from fedsim.plugins.registry import register
from fedsim.privacy.noise import Deviations
from fedsim.privacy.statistics import moments, shrinkage
from fedsim.privacy.statistics.outer_products import Products, unit_weights
from fedsim.privacy.statistics.spectral import descending

SHARES = {
    "coordinates": 0.12,
    "class means": 0.37,
    "moments": 0.42,
    "class moments": 0.09,
}
"""The share of each release in the budget, in units of 1 / sigma^2."""
MOMENT_WEIGHTS = {"class_sums": 0.5, "class_counts": 0.15, "second": 1.0}
"""Weights of the moments in a row's joint norm, before :meth:`FedHypeVAEWarm.emphasis`.

They suit many rows, for which the release before this one already gives precise class means.
"""


@dataclass(frozen=True)
class TunedWarm:
    """Constants of the warm form, all ours: the paper has no closed form.

    docs/fedhypevae.md says which was tuned on which data.

    Attributes:
        clip: coordinates are clipped at this share of their root mean square norm.
        known: rows are centred at the means of their classes if shrinkage leaves more than this
            share of the norm of a class mean, on average over classes.
        visible: the second moment keeps its weight if the root mean square eigenvalue of its noise,
            divided by the number of rows, is at most this. Otherwise sums and counts gain weight.
        most_excess: the weight of the second moment is divided by at most this.
        most_counts: the largest weight of class counts.
        least_variance: an estimated part of a variance is at least this share of the whole. It
            bounds the variance within classes, and the variance about the released centre.
        floor: an estimated eigenvalue is at least this times the smaller of two numbers: the mean
            eigenvalue, and the noise on an entry times sqrt(d).
        least_eigenvalue: the smallest eigenvalue, in units of their mean.
        resolution: the largest operator norm of the noise on a covariance in the block, in units of
            that covariance.
        block: the largest number of directions in the block, unless more lie between class means.
        most_entries: the largest number of entries of all classes' covariances in the block
            together. So C classes have at most sqrt(most_entries / C) directions: 259 with 1,000
            classes.
    """

    clip: float = 0.7
    known: float = 0.5
    visible: float = 0.025
    most_excess: float = 20.0
    most_counts: float = 0.5
    least_variance: float = 0.02
    floor: float = 0.6
    least_eigenvalue: float = 0.02
    resolution: float = 0.12
    block: int = 512
    most_entries: int = 2**26


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
"""The names of the released tensors that clients need."""


class FedHypeVAEWarmParams(OneShotParams):
    """Parameters of FedHypeVAE, warm.

    Attributes:
        block: the largest number of directions in which every class has its own covariance; the
            noise allows fewer at a small epsilon.
        paired: whether rows of a label are drawn in pairs, and pairs orthogonal to each other. This
            balances the coordinates that carry no information about the class. If false, rows are
            independent.
    """

    block: int = Field(TUNED.block, ge=1)
    paired: bool = True


@register("fedhypevae-warm")
class FedHypeVAEWarm(OneShot):
    """FedHypeVAE in closed form, with one generator for all clients.

    It releases coordinates, class means, moments, and moments of classes in a block.
    """

    source = "arXiv 2601.00785, linear-Gaussian, by moments; eigenvalues: arXiv 1610.08104"
    Params: ClassVar[type[FedHypeVAEWarmParams]] = FedHypeVAEWarmParams
    shares: ClassVar[Mapping[str, float]] = SHARES
    sent_to_clients: ClassVar[tuple[str, ...]] = SENT_TO_CLIENTS

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics in the order of their release."""
        share = self.shares
        mean = self.mean_statistic(MEAN_SHARE * share["coordinates"])
        class_means = Statistic(
            "class means",
            share["class means"],
            moments.CLASS_MEAN_WEIGHTS,
            self.means_products,
            self.receive_means,
        )
        all_moments = Statistic(
            "moments",
            share["moments"],
            MOMENT_WEIGHTS,
            self.moment_products,
            self.receive_moments,
        )
        class_moments = Statistic(
            "class moments",
            share["class moments"],
            class_block.CLASS_WEIGHTS,
            self.class_products,
            self.receive_classes,
        )
        coordinates = coordinate_statistics(
            share["coordinates"],
            self.about,
            mean,
        )
        return (*coordinates, class_means, all_moments, class_moments)

    def mean_statistic(self, share: float) -> Statistic:
        """Return the statistic of the mean of all rows."""
        return replace(overall_mean(share), receive=self.receive_mean)

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase per statistic; a report draws that of the moments."""
        return tuple(
            self.phase(statistic, main=statistic.name == "moments")
            for statistic in self.statistics()
        )

    def broadcast(self, server: Server) -> Tensors:
        """Return the tensors that have been released so far and that clients need."""
        tensors = server.tensors
        return {name: tensors[name] for name in self.sent_to_clients if name in tensors}

    # --- the mean ---

    def receive_mean(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the centre, the rows' mean squared distance from it, and the emphasis.

        Rows have unit norm, so the distance follows from the norm of the centre.
        """
        released = moments.released_mean(sums, std)
        square = 1 - released.mean.square().sum()
        server.tensors |= {
            "mean": released.mean,
            "rows": released.rows,
            "square": square.clamp_min(moments.LEAST_SQUARE),
            "error": released.error,
            "emphasis": self.emphasis(server, released.rows),
        }

    def emphasis(self, server: Server, rows: Tensor) -> Tensor:
        """Return factors on the weights of the moments, in their order, ``[3]``.

        The joint norm of the weights stays the same. For few rows in many dimensions, noise hides
        the second moment, so its weight falls. The weights of sums and counts rise.

        Args:
            server: the server, whose noise is public.
            rows: the released number of rows, a scalar.
        """
        second_weight = unit_weights(MOMENT_WEIGHTS)["second"]
        noise = server.noise_std("moments", self.task.clients) / self.clip() / second_weight
        excess = noise * (self.dim / 2) ** 0.5 / rows / TUNED.visible
        excess = excess.clamp(1, TUNED.most_excess)
        sums, counts, second = MOMENT_WEIGHTS.values()
        new_weights = torch.stack(
            [
                torch.full_like(excess, sums),
                (counts * excess.sqrt()).clamp_max(TUNED.most_counts),
                second / excess,
            ]
        )
        weights = to_device(torch.tensor([sums, counts, second]), rows.device)
        factors: Tensor = new_weights / new_weights.norm() / (weights / weights.norm())
        return factors

    # --- class means ---

    def about(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Return rows minus the centre, ``[N, d]``."""
        return rows.x - broadcast["mean"]

    def in_coordinates(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Return rows in released coordinates ``[N, d]``, of mean squared norm 1."""
        return Coordinates(broadcast).of_centred(self.about(rows, broadcast))

    def means_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return class sums and counts of the clipped rows."""
        r = moments.in_unit_ball(self.in_coordinates(rows, broadcast) / TUNED.clip)
        return moments.class_mean_products(r, rows.y, self.task.classes)

    def receive_means(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store class means with their noise, and the centres of the moments.

        The centres are the shrunk class means if these stand out of their noise, else 0. Rows
        about class means are shorter, so they are clipped to a smaller radius.
        """
        released_counts = sums["class_counts"][:, 0]
        counts = moments.counts_above_noise(
            released_counts,
            std["class_counts"],
        )
        means = sums["class_sums"] / counts[:, None] * TUNED.clip
        noise = (std["class_sums"] / counts * TUNED.clip).square()
        shrunk = shrinkage.james_stein(
            means.double(),
            noise.double(),
            steps=shrinkage.STEPS,
        )
        shrunk = shrunk.to(means.dtype)
        share_left = shrunk.norm(dim=1) / means.norm(dim=1).clamp_min(1e-12)
        known = share_left.mean() > TUNED.known
        centres = torch.where(known, shrunk, 0.0)
        variance = 1 - self.error(server.tensors)
        variance_between = (counts / counts.sum() * (centres * means).sum(1)).sum()
        variance_within = torch.maximum(
            variance - variance_between, TUNED.least_variance * variance
        )
        server.tensors |= {
            "class_means": means,
            "class_means_noise": noise,
            "class_counts": released_counts,
            "class_counts_noise": counts.new_tensor(std["class_counts"] ** 2),
            "known": known,
            "class_centres": centres,
            "radius": TUNED.clip * (variance_within / variance).sqrt(),
        }

    def error(self, broadcast: Tensors) -> Tensor:
        """Return the expected squared distance of the centre from the mean, in coordinates."""
        error = broadcast["error"] / Coordinates(broadcast).scale.square()
        return error.clamp_max(1 - TUNED.least_variance)

    # --- moments ---

    def moment_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return the moments of the clipped rows about their classes' centres.

        They are class sums, class counts and one second moment, each times its emphasis.
        """
        centred = self.in_coordinates(rows, broadcast) - broadcast["class_centres"][rows.y]
        r = moments.in_unit_ball(centred / broadcast["radius"])
        products = moments.moment_products(r, rows.y, self.task.classes)
        emphasis = dict(zip(MOMENT_WEIGHTS, broadcast["emphasis"], strict=True))
        return {
            name: replace(product, left=emphasis[name] * product.left)
            for name, product in products.items()
        }

    def receive_moments(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the decoder and the block that follow from class means and the covariance."""
        tensors = server.tensors
        emphasis = dict(zip(MOMENT_WEIGHTS, tensors["emphasis"].tolist(), strict=True))
        sums = {name: sums[name] / factor for name, factor in emphasis.items()}
        std = {name: std[name] / factor for name, factor in emphasis.items()}
        radius = tensors["radius"]
        squared_norm = clipped_square(
            tensors,
            torch.full_like(radius, TUNED.clip),
        )
        released = moments.gaussians(sums, std, squared_norm)
        # Counts and means were released twice; both estimates are combined.
        counts, count_noise = shrinkage.of_two(
            tensors["class_counts"],
            tensors["class_counts_noise"],
            sums["class_counts"][:, 0],
            released.counts.new_tensor(std["class_counts"] ** 2),
        )
        counts = moments.counts_above_noise(
            counts,
            float(count_noise.sqrt()),
        )
        means, mean_noise = shrinkage.of_two(
            tensors["class_means"] / radius,
            tensors["class_means_noise"] / radius.square(),
            tensors["class_centres"] / radius + released.means,
            released.mean_noise,
        )
        variances, axes = descending(released.second)
        if tensors["known"]:
            values = variances
            vectors = axes
        else:
            covariance = moments.within(
                released.second,
                means,
                mean_noise,
                counts,
            )
            values, vectors = descending(covariance)
        in_axes = shrinkage.shrunk_along(
            means.double() @ axes,
            mean_noise.double(),
            variances,
        )
        means = (in_axes @ axes.T).float()
        tensors["counts"] = counts
        values = estimated_eigenvalues(values, released.noise)
        server.tensors |= self.decoder(server, means, values, vectors)

    def decoder(
        self,
        server: Server,
        means: Tensor,
        values: Tensor,
        vectors: Tensor,
    ) -> Tensors:
        """Return the tensors of the affine decoder and of its block.

        Args:
            server: the server.
            means: class means ``[C, d]``.
            values: the eigenvalues of the covariance within classes, descending, ``[d]``.
            vectors: its eigenvectors ``[d, d]``.
        """
        root = ((vectors * values.sqrt()) @ vectors.T).float()
        inverse_root = ((vectors * values.rsqrt()) @ vectors.T).float()
        coordinates = Coordinates(server.tensors)
        outward = coordinates.apart(root)
        block = class_block.block_of(
            means,
            values,
            vectors,
            self.block_size(server),
            outward,
        )
        # The prior already contains the part of the common mean that lies in the block. So this
        # part is subtracted from the decoder's constant.
        centre = means.mean(0)
        in_block = (centre @ inverse_root @ block.directions) @ block.directions.T @ root
        return {
            "centre": coordinates.mean,
            "basis": coordinates.of_centred(block.basis.T).T,
            "directions": block.directions,
            "coordinates": means @ block.basis,
            "root": outward,
            "middle": coordinates.apart(centre - in_block),
        }

    def block_size(self, server: Server) -> int:
        """Return the number of directions of the block.

        It is the number that the noise of the class moments leaves visible, or C - 1, the number of
        directions between class means, if that is more. :meth:`most_directions` bounds it. The
        visible number is computed as if every class had the harmonic mean of the released counts.
        """
        counts = server.tensors["counts"]
        typical_rows = len(counts) * float(len(counts) / (1 / counts).sum())
        weight = unit_weights(class_block.CLASS_WEIGHTS)["class_second"]
        std = server.noise_std("class moments", self.task.clients)
        noise = std / self.clip() / weight * class_block.TUNED.reach**2
        affordable = shrinkage.affordable(
            typical_rows,
            noise,
            TUNED.resolution,
        )
        return min(max(self.task.classes - 1, affordable), self.most_directions())

    def most_directions(self) -> int:
        """Return the largest number of directions that the block can have.

        It is limited by the parameter ``block``, or by C - 1 if that is more, and by memory.
        """
        most: int = self.params.block
        in_memory = math.isqrt(TUNED.most_entries // self.task.classes)
        return min(self.dim, in_memory, max(self.task.classes - 1, most))

    def statistic_numbers(self) -> int:
        """Return the size of the statistics, with a matrix in the block per class."""
        return super().statistic_numbers() + self.task.classes * self.most_directions() ** 2

    # --- classes ---

    def block_residuals(
        self,
        rows: Rows,
        broadcast: Tensors,
        means: Tensor,
    ) -> Tensor:
        """Return residuals ``[N, k]`` of rows in the block about class ``means`` ``[C, k]``."""
        r = self.about(rows, broadcast) / broadcast["radius"]
        return class_block.residuals(r, rows.y, broadcast["basis"], means)

    def class_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return sums and second moments of every class's residuals in the block."""
        u = self.block_residuals(rows, broadcast, broadcast["coordinates"])
        return class_block.class_products(u, rows.y, self.task.classes)

    def receive_classes(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the prior's mean and covariance for every class."""
        counts = server.tensors["counts"]
        block_means = server.tensors["coordinates"]
        size = block_means.shape[1]
        reach = class_block.reach(size)
        mean_residuals = sums["class_sums"] / counts[:, None]
        offsets = shrinkage.james_stein(
            mean_residuals,
            (std["class_sums"] / counts).square(),
        )
        # With a thousand classes, these matrices take more memory than all else. So they are taken
        # out of the sums, and no copy of them stays.
        second = sums.pop("class_second").view(len(counts), size, size)
        second = (second + second.transpose(1, 2)) / 2 / counts[:, None, None]
        noise = std["class_second"] / 2**0.5
        covariances = shrinkage.pooled_and_own(
            second,
            offsets,
            counts,
            noise,
        )
        server.tensors |= {
            "prior_means": block_means + reach * offsets,
            "prior_covariances": covariances.mul_(reach**2),
        }

    def class_rows(self, server: Server) -> Tensor:
        """Return the class counts that class means and moments give together, ``[C]``."""
        return server.tensors["counts"]

    def generator(self, server: Server) -> BlockGenerator:
        """Return one generator for all clients."""
        return BlockGenerator(server.tensors, self.params.paired)


def estimated_eigenvalues(noisy: Tensor, noise: float) -> Tensor:
    """Return estimates of the eigenvalues of the covariance, descending, ``[d]``.

    Their sum is that of the noisy eigenvalues, if that is positive.

    Args:
        noisy: the eigenvalues of the noisy covariance, descending, ``[d]``.
        noise: the standard deviation of the noise on an off-diagonal entry.
    """
    mean = float(noisy.mean().clamp_min(1e-9))
    edge = noise * len(noisy) ** 0.5
    floor = max(
        TUNED.least_eigenvalue * mean,
        TUNED.floor * min(mean, edge),
    )
    values = shrinkage.free_eigenvalues(noisy, noise).clamp_min(floor)
    return values * (mean * len(noisy) / values.sum())
