"""FedHypeVAE for sites: what all sites share, and what each site adds to it.

Every client is a site here. A site adds shifts of class means and a covariance, in the directions
that separate classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from algorithms import class_block, fedhypevae_warm
from algorithms.class_block import SitesGenerator
from algorithms.fedhypevae_warm import SENT_TO_CLIENTS, FedHypeVAEWarm, FedHypeVAEWarmParams
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows, Statistic
from fedsim.plugins.registry import register
from fedsim.privacy.noise import Deviations
from fedsim.privacy.plan import Unit
from fedsim.privacy.statistics import moments, shrinkage
from fedsim.privacy.statistics.outer_products import Products

SHARES = {
    "coordinates": 0.18,
    "class means": 0.26,
    "moments": 0.28,
    "class moments": 0.14,
    "site moments": 0.14,
}
"""The share of each release in the budget, in units of 1 / sigma^2."""
APART = 0.5
"""Each site is centred by its own mean if site means vary by more than this; the value is ours.

It is the variance between site means in units of the variance within sites.
"""


class FedHypeVAESitesParams(FedHypeVAEWarmParams):
    """Parameters of FedHypeVAE for sites: those of the warm form, with a smaller block.

    Attributes:
        block: the largest number of directions in which every class has its own covariance and
            every site its own shifts, unless more lie between class means. A class of a site has
            few rows, and in more directions sampling noise drowns their mean.
    """

    block: int = Field(64, ge=1)


@register("fedhypevae-sites")
class FedHypeVAESites(FedHypeVAEWarm):
    """FedHypeVAE whose code is, for every site, shifts of the prior's means and a covariance.

    A site has one shift per class. Shifts and covariances are shrunk by their noise. A site without
    a signal has no shifts and the covariance that all sites share.
    """

    # The noise that hides a whole client would also hide every statistic of a single client.
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
    Params: ClassVar[type[FedHypeVAESitesParams]] = FedHypeVAESitesParams
    shares: ClassVar[Mapping[str, float]] = SHARES
    sent_to_clients = (*SENT_TO_CLIENTS, "client_centres", "prior_means")

    def ignores_partition(self) -> bool:
        """Return False: each client has its own code."""
        return False

    def statistic_numbers(self) -> int:
        """Return the size of the statistics, with a mean, a matrix and class sums per site."""
        directions = self.most_directions()
        of_a_site = self.dim + directions * (directions + self.task.classes)
        return super().statistic_numbers() + self.task.clients * of_a_site

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of the warm form, then the site moments in the block."""
        site_moments = Statistic(
            "site moments",
            self.shares["site moments"],
            class_block.SITE_WEIGHTS,
            self.site_products,
            self.receive_sites,
        )
        return (*super().statistics(), site_moments)

    def mean_statistic(self, share: float) -> Statistic:
        """Return the statistic of the mean of all rows and of the mean of every site."""

        def products(rows: Rows, broadcast: Tensors) -> Products:
            of_sites = moments.sums_and_counts(
                rows.x,
                rows.client,
                self.task.clients,
                "client",
            )
            return moments.mean_products(rows.x) | of_sites

        return replace(
            super().mean_statistic(share),
            weights=moments.MEAN_WEIGHTS | moments.CLIENT_WEIGHTS,
            products=products,
        )

    def receive_mean(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store one centre for all sites, or the centre of each if their means are far apart.

        Sites that differ only in their label frequencies would not have means so far apart.
        """
        super().receive_mean(server, sums, std)
        square = server.tensors["square"]
        site_means = moments.client_means(
            sums["client_sums"],
            sums["client_counts"],
            std,
        )
        variance_between = (site_means - site_means.mean(0)).square().sum(1).mean()
        least = fedhypevae_warm.TUNED.least_variance * square
        # The mean square is about the released mean, so it also contains the error of that mean.
        variance_within = torch.maximum(
            square - server.tensors["error"] - variance_between,
            least,
        )
        if variance_between > APART * variance_within:
            centres = site_means
            square = variance_within
        else:
            centres = server.tensors["mean"].expand_as(site_means).clone()
        server.tensors |= {
            "square": square,
            "client_centres": centres,
            "client_rows": sums["client_counts"][:, 0].clamp_min(1),
        }

    def about(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Return rows minus their site's centre, ``[N, d]``."""
        return rows.x - broadcast["client_centres"][rows.client]

    def site_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return the statistics of residuals in the block, by site and by class of a site."""
        u = self.block_residuals(rows, broadcast, broadcast["prior_means"])
        classes = self.task.classes
        return class_block.site_products(
            u,
            rows.y,
            rows.client,
            classes,
            self.task.clients,
        )

    def receive_sites(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store shifts of the prior's means ``[K, C, k]`` and covariances of sites ``[K, k, k]``.

        A shift is the sum of the mean shift of its site and of the further shift of its class at
        that site. Both are shrunk by their noise.
        """
        means = server.tensors["prior_means"]
        size = means.shape[1]
        axes = class_block.between((means - means.mean(0)).double())
        site_shifts = shrunk_mean(
            sums["site_sums"], sums["site_counts"], std["site_sums"], std["site_counts"], axes
        )
        class_counts = sums["site_class_counts"]
        class_shifts = shrunk_mean(
            sums["site_class_sums"]
            - class_counts * site_shifts.repeat_interleave(self.task.classes, 0),
            class_counts,
            std["site_class_sums"],
            std["site_class_counts"],
            axes,
        )
        shifts = site_shifts[:, None] + class_shifts.view(len(site_shifts), -1, size)
        covariances = site_covariances(
            sums,
            std,
            shifts,
            server.tensors["prior_covariances"],
        )
        server.tensors |= {
            "shifts": class_block.reach(size) * shifts,
            "site_covariances": covariances,
        }

    def generator(self, server: Server) -> SitesGenerator:
        """Return the shared generator, which also makes a generator for every site."""
        return SitesGenerator(server.tensors, self.params.paired)


def shrunk_mean(
    sums: Tensor,
    counts: Tensor,
    std: float,
    count_std: float,
    axes: Tensor,
) -> Tensor:
    """Return the mean residuals of groups ``[G, k]``, shrunk to 0 by their noise.

    The noise of a mean is the added noise plus the sampling error. The variance of the signal is
    estimated separately for the directions between class means, in which sites differ most, and for
    all others.

    Args:
        sums: the released sums of residuals ``[G, k]``, in units of
            :func:`algorithms.class_block.reach`. The variance within classes is about 1 before the
            division by reach.
        counts: the released counts ``[G, 1]``.
        std: the standard deviation of the noise on the sums.
        count_std: the standard deviation of the noise on the counts.
        axes: orthonormal columns ``[k, m]`` that span the directions between class means; m is at
            most C - 1.
    """
    size = sums.shape[1]
    rank = axes.shape[1]
    rows = moments.counts_above_noise(counts, count_std)[:, 0].double()
    sampling_error = 1 / (rows * class_block.TUNED.reach**2 * size)
    noise = (std / rows).square() + sampling_error
    means = sums / rows[:, None]
    along_axes = means @ axes @ axes.T
    # A thousand classes at a hundred sites have as many means as a data set has rows. So they are
    # changed in place, and what is no longer needed is freed.
    beyond_axes = means.sub_(along_axes)
    # If class means are equal, there are no directions between them: ``axes`` has no columns, and
    # ``along_axes`` is 0 before and after it is shrunk.
    shrunk = shrinkage.james_stein(
        along_axes,
        noise,
        max(rank, 1),
        shrinkage.STEPS,
    )
    del along_axes
    if rank < size:
        shrunk += shrinkage.james_stein(
            beyond_axes,
            noise,
            size - rank,
            shrinkage.STEPS,
        )
    return shrunk.to(sums.dtype)


def site_covariances(
    sums: Tensors,
    std: Deviations,
    shifts: Tensor,
    class_covariances: Tensor,
) -> Tensor:
    """Return the covariances of sites ``[K, k, k]``, relative to what their classes explain.

    The covariance that is expected of a site is the mean of its classes' covariances, weighted by
    how frequent the classes are there. The deviation of the estimate from it is shrunk by its
    noise.

    Args:
        sums: the released sums of :func:`algorithms.class_block.site_products`.
        std: the standard deviations of their noise.
        shifts: the shifts of the sites' class means ``[K, C, k]``, in the units of the sums.
        class_covariances: the covariances of the classes ``[C, k, k]``, in whitened coordinates and
            so not divided by the squared reach, as the sums are.
    """
    size = shifts.shape[2]
    class_counts = sums["site_class_counts"].view(len(shifts), -1).clamp_min(1)
    frequency = class_counts / class_counts.sum(1, keepdim=True)
    counts = moments.counts_above_noise(
        sums["site_counts"][:, 0],
        std["site_counts"],
    )
    second = class_block.from_upper_triangles(sums["site_second"], size) / counts[:, None, None]
    about_means = second - torch.einsum("kc,kci,kcj->kij", frequency, shifts, shifts)
    mixed = torch.einsum("kc,cij->kij", frequency, class_covariances)
    expected = mixed / class_block.reach(size) ** 2
    # Entries off the diagonal were released times sqrt(2).
    noise = std["site_second"] / 2**0.5
    return shrinkage.relative_covariances(
        about_means,
        expected,
        counts,
        noise,
    )
