"""FedHypeVAE for sites: what all share and what each site adds; in the directions that set classes
apart: means and spread.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from fedsim.privacy.plan import Unit
from fedsim.privacy.statistics import moments, shrinkage

SHARES = {
    "coordinates": 0.18,
    "class means": 0.26,
    "moments": 0.28,
    "class moments": 0.14,
    "site moments": 0.14,
}


APART = 0.5
"""Sites whose means are farther apart than this share of the rows' variance are centred each by its
own mean; ours.
"""


class FedHypeVAESitesParams(FedHypeVAEWarmParams):
    """Parameters of FedHypeVAE for sites; those of the warm form, with a smaller block.

    Attributes:
        block: most directions in which every class has a covariance, and every site a shift, of its
            own: a class of a site has few rows, whose mean the noise of sampling drowns in more of
                them.
    """

    block: int = Field(64, ge=1)


@register("fedhypevae-sites")
class FedHypeVAESites(FedHypeVAEWarm):
    """Each site's code is its shift of the prior's means, by class, and its covariance; shrunk, so
    that a site without signal has none.
    """

    # a release about single clients is hidden by the noise that hides a client
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
    Params: ClassVar[type[FedHypeVAESitesParams]] = FedHypeVAESitesParams
    shares: ClassVar[Mapping[str, float]] = SHARES

    def ignores_partition(self) -> bool:
        """Its codes are the clients'."""
        return False

    def statistics(self) -> tuple[Statistic, ...]:
        """The shared ones; then site moments in the block."""
        share = self.shares["site moments"]
        return (
            *super().statistics(),
            Statistic(
                "site moments",
                share,
                class_block.SITE_WEIGHTS,
                self.site_products,
                self.receive_sites,
            ),
        )

    def broadcast(self, server: Server) -> Tensors:
        """As far as clients need it."""
        names = (*SENT_TO_CLIENTS, "client_centres", "prior_means")
        return {name: server.tensors[name] for name in names if name in server.tensors}

    def mean_statistic(self, share: float) -> Statistic:
        """The mean of all rows and of every site's."""

        def products(rows: Rows, broadcast: Tensors) -> moments.Products:
            return moments.mean_products(rows.x) | moments.client_mean_products(
                rows.x, rows.client, self.task.clients
            )

        return Statistic(
            "mean",
            share,
            moments.MEAN_WEIGHTS | moments.CLIENT_WEIGHTS,
            products,
            self.receive_mean,
        )

    def receive_mean(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """One centre for all sites; where their means are far apart, which no mixture of labels
        explains, each site's own.
        """
        super().receive_mean(server, sums, std)
        mean = server.tensors["mean"]
        square = server.tensors["square"]
        own = moments.client_means(sums["client_sums"], sums["client_counts"], std)
        apart = (own - own.mean(0)).square().sum(1).mean()
        within = torch.maximum(
            square - server.tensors["error"] - apart, fedhypevae_warm.TUNED.least_variance * square
        )
        far = apart > APART * within
        if far:
            centres = own
        else:
            centres = mean.expand_as(own).clone()
        rows = sums["client_counts"][:, 0].clamp_min(1)
        server.tensors |= {
            "square": within if far else square,
            "client_centres": centres,
            "client_rows": rows,
        }

    def about(self, rows: Rows, broadcast: Tensors) -> Tensor:
        """Rows about their site's centre."""
        return rows.x - broadcast["client_centres"][rows.client]

    def site_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Sums and counts of residuals by site and by site and class, and second moments by
        site.
        """
        u = class_block.residuals(
            self.about(rows, broadcast) / broadcast["radius"],
            rows.y,
            broadcast["basis"],
            broadcast["prior_means"],
        )
        return class_block.site_products(
            u, rows.y, rows.client, self.task.classes, self.task.clients
        )

    def receive_sites(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Shifts of the prior's means ``[K, C, k]``: the site's, then what its class has beyond it,
        shrunk by noise; covariances.
        """
        means = server.tensors["prior_means"]
        size = means.shape[1]
        along = class_block.between((means - means.mean(0)).double())
        shift = shrunk_mean(
            sums["site_sums"], sums["site_counts"], std["site_sums"], std["site_counts"], along
        )
        rest = sums["site_class_sums"] - sums["site_class_counts"] * shift.repeat_interleave(
            self.task.classes, 0
        )
        own = shrunk_mean(
            rest, sums["site_class_counts"], std["site_class_sums"], std["site_class_counts"], along
        )
        shifts = shift[:, None] + own.view(len(shift), -1, size)
        covariances = site_covariances(sums, std, shifts, server.tensors["prior_covariances"])
        server.tensors |= {
            "shifts": class_block.reach(size) * shifts,
            "site_covariances": covariances,
        }

    def generator(self, server: Server) -> SitesGenerator:
        """One for all, and one for every site."""
        return SitesGenerator(server.tensors, self.params.paired)


def shrunk_mean(
    sums: Tensor, counts: Tensor, std: float, count_std: float, along: Tensor
) -> Tensor:
    """Means ``[G, k]`` of residuals whose norm is about 1 / reach, shrunk to 0 by the noise that
    was added and that of sampling.

    In the directions ``along`` ``[k, C - 1]`` between class means, where sites differ most, and in
    all others by a signal of their own.
    """
    rows = moments.counts_above_noise(counts, count_std)[:, 0].double()
    noise = (std / rows).square() + 1 / (rows * class_block.TUNED.reach**2 * sums.shape[1])
    means = sums / rows[:, None]
    shrunk = torch.zeros_like(sums, dtype=torch.double)
    between = means @ along @ along.T
    # equal class means have no directions between them
    for part, rank in (
        (between, along.shape[1]),
        (means - between, sums.shape[1] - along.shape[1]),
    ):
        if rank:
            shrunk += shrinkage.james_stein(part, noise, rank, shrinkage.STEPS)
    return shrunk.to(sums.dtype)


def site_covariances(
    sums: Tensors, std: Mapping[str, float], shifts: Tensor, of_classes: Tensor
) -> Tensor:
    """Covariances of sites ``[K, k, k]``, relative to what their classes, as frequent as there,
    would have them be; shrunk to that.

    Sums and their noise as :func:`algorithms.class_block.site_products` names them, shifts of the
    sites' class means ``[K, C, k]`` in the units of the sums, and covariances of the classes ``[C,
    k, k]`` in the block's.
    """
    size = shifts.shape[2]
    frequent = sums["site_class_counts"].view(len(shifts), -1).clamp_min(1)
    frequent = frequent / frequent.sum(1, keepdim=True)
    counts = moments.counts_above_noise(sums["site_counts"][:, 0], std["site_counts"])
    second = class_block.from_upper_triangles(sums["site_second"], size) / counts[:, None, None]
    about_means = second - torch.einsum("kc,kci,kcj->kij", frequent, shifts, shifts)
    expected = torch.einsum("kc,cij->kij", frequent, of_classes) / class_block.reach(size) ** 2
    return shrinkage.relative_covariances(
        about_means, expected, counts, std["site_second"] / 2**0.5
    )
