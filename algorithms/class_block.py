"""The block: the few whitened directions that separate classes, in which class and site moments are
released again with little noise.

In whitened coordinates ``w = Sigma^(-1/2) r`` of centred rows r, classes with a common covariance
are N(m_c, I). The log ratio of two of them is ``(m_a - m_b) . w`` plus a constant, so only the C -
1 directions between class means separate classes (linear discriminant analysis, Fisher 1936).
Leading directions of the data are added as far as the noise allows. A block of k directions needs
k^2 numbers a class, all d directions d^2: noise of one variance a number is smaller by k / d in
norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.device import normal
from fedsim.methods.one_shot import places
from fedsim.models.layers import one_hot
from fedsim.privacy.statistics.moments import Products, in_unit_ball
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import (
    leading,
    polar,
    spectral_function,
    square_root,
    steady,
)


@dataclass(frozen=True)
class TunedBlock:
    """Constants of the block, all ours: the paper has no closed form. docs/fedhypevae.md has the
    data that they were tuned on.
    """

    reach: float = (
        1.5  # residuals in the block are clipped at this many times their expected norm, sqrt(k)
    )
    closeness: float = 0.75  # class means are drawn at this share of their distance from their mean
    # mean square of a coordinate of class means as drawn, about their mean, in units of the
    # variance that rows have in it: real classes
    # overlap more than normals of the believed covariance, and a learner of classes that do not
    # overlap ignores how rows vary
    overlap: float = 1.8
    # least variance of rows between class means, in units of the believed one: equal means leave
    # some
    least_between: float = 0.1
    # rows drawn orthogonal to each other at a time, at most: what is gained needs no more, and
    # memory would
    together: int = 4096
    narrowest: float = (
        0.1  # least and largest variance of a site in the block, in units of what all share
    )
    widest: float = 10.0


TUNED = TunedBlock()
CLASS_WEIGHTS = {"class_sums": 1.0, "class_second": 1.0}
SITE_WEIGHTS = {
    "site_sums": 1.0,
    "site_counts": 0.3,
    "site_second": 0.4,
    "site_class_sums": 1.0,
    "site_class_counts": 0.3,
}
"""Weights of statistics in a row's joint norm; ours, the sites' tuned as the constants."""


@dataclass(frozen=True)
class ClassBlock:
    """A block of the whitened space.

    Attributes:
        directions: orthonormal columns ``[d, k]`` in whitened coordinates; they depend on their
            span alone.
        basis: ``Sigma^(-1/2) directions`` ``[d, k]``, which takes centred rows to the block.
    """

    directions: Tensor
    basis: Tensor


def block_of(
    means: Tensor, values: Tensor, vectors: Tensor, size: int, outward: Tensor
) -> ClassBlock:
    """The directions between class means ``[C, d]``, then those in which embeddings vary most, up
    to ``size`` in all.

    There are C - 1 directions at least, fewer only where class means span fewer, and never none.
    Eigenvalues ``[d]``, descending, and eigenvectors ``[d, d]`` are of the covariance within
    classes, as it is believed; ``outward`` ``[d, d]`` takes whitened rows to embeddings.
    """
    white = (vectors * values.rsqrt()) @ vectors.T
    found = between((means - means.mean(0)).double() @ white)
    covariance = outward.double().T @ outward.double()
    # float32 does not hold directions of less variance
    least = 1e-6 * float(covariance.trace().clamp_min(1e-12))
    varied, along = leading(covariance, max(0, min(size, len(values)) - found.shape[1]), least)
    first = outward.double() @ along / varied.sqrt()
    if found.shape[1] + first.shape[1] == 0:
        # equal means and leading directions that cannot be told apart: any direction does, the same
        # on every processor
        first = torch.eye(len(values), dtype=values.dtype, device=values.device)[:, :1]
    rest = first - found @ (found.T @ first)
    if first.shape[1]:
        directions = steady(torch.cat([found, polar(rest)], 1))
    else:
        directions = steady(found)
    return ClassBlock(directions.float(), (white @ directions).float())


def residuals(r: Tensor, y: Tensor, basis: Tensor, means: Tensor) -> Tensor:
    """Centred rows ``[N, d]`` in the block, about ``means`` ``[C, k]`` of their class, clipped:
    norm at most 1.
    """
    return in_unit_ball((r @ basis - means[y]) / reach(basis.shape[1]))


def reach(size: int) -> float:
    """Where residuals of k directions are clipped."""
    return TUNED.reach * math.sqrt(size)


def class_products(u: Tensor, y: Tensor, classes: int) -> Products:
    """Sums ``[C, k]`` and second moments ``[C k, k]`` of every class's residuals ``[N, k]``."""
    hot = one_hot(y, classes)
    left = (hot.unsqueeze(2) * u.unsqueeze(1)).flatten(1)
    return {"class_sums": OuterProduct(hot, u), "class_second": OuterProduct(left, u)}


def site_products(u: Tensor, y: Tensor, site: Tensor, classes: int, sites: int) -> Products:
    """Sums, counts and second moments of residuals ``[N, k]`` for every site; sums and counts for
    every class of every site.

    Second moments are ``[K, k (k + 1) / 2]``, as :func:`upper_triangles` has them.
    """
    of_site = one_hot(site, sites)
    of_class = one_hot(site * classes + y, sites * classes)
    ones = u.new_ones(len(u), 1)
    return {
        "site_sums": OuterProduct(of_site, u),
        "site_counts": OuterProduct(of_site, ones),
        "site_second": OuterProduct(of_site, upper_triangles(u)),
        "site_class_sums": OuterProduct(of_class, u),
        "site_class_counts": OuterProduct(of_class, ones),
    }


def upper_triangles(u: Tensor) -> Tensor:
    """``u u^T`` of rows ``[N, k]`` as its upper triangle ``[N, k (k + 1) / 2]``; off the diagonal
    times sqrt(2), so the norm is |u|^2.
    """
    row, column = torch.triu_indices(u.shape[1], u.shape[1], device=u.device)
    made: Tensor = u[:, row] * u[:, column] * torch.where(row == column, 1.0, math.sqrt(2))
    return made


def from_upper_triangles(values: Tensor, size: int) -> Tensor:
    """Symmetric matrices ``[K, k, k]`` from their :func:`upper_triangles` ``[K, k (k + 1) /
    2]``.
    """
    row, column = torch.triu_indices(size, size, device=values.device)
    matrices = values.new_zeros(len(values), size, size)
    matrices[:, row, column] = values * torch.where(row == column, 0.5, math.sqrt(0.5))
    return matrices + matrices.transpose(1, 2)


def between(apart: Tensor) -> Tensor:
    """Orthonormal columns ``[d, C - 1]`` that span class means about their mean, ``[C, d]``,
    float64; fewer where those span less.
    """
    # with apart apart^T = V diag(l) V^T, the columns of apart^T V diag(l)^(-1/2) are apart's right
    # singular vectors: C x C, not d x d
    gram = apart @ apart.T
    squared, vectors = leading(gram, len(apart) - 1, 1e-6 * float(gram.trace().clamp_min(1e-12)))
    return apart.T @ vectors / squared.sqrt()


class BlockGenerator:
    """Decodes ``x = centre + radius (middle + root w)``, w standard normal but in the block, where
    it is the class's own normal.

    A linear-Gaussian CVAE: z = w, the decoder is affine, the prior p(z | y, v) has mean and
    covariance by class, and by site where there are sites. Class means are drawn together and
    classes overlap as :data:`TUNED` says. What the block's coordinates are multiplied by when all
    else is drawn is ``spread`` ``[k, k]``, where there is one among the tensors.

    If ``paired``, rows of a label come in pairs (antithetic variates, Hammersley and Morton 1956):
    the second has the first's coordinates between class means, and the opposite of all else; and
    pairs are drawn orthogonal to each other. Each row has the model's law; but what says nothing of
    a class is balanced within a pair, and over all pairs varies as it is believed to, so that
    nobody who learns from the rows takes chance there for a difference between classes.
    """

    def __init__(self, tensors: dict[str, Tensor], paired: bool = True) -> None:
        self.tensors = tensors
        self.paired = paired
        prior = tensors["prior_means"]
        common = tensors["prior_means"].mean(0)
        self.means = common + TUNED.closeness * (prior - common)
        along = between((prior - common).double())
        self.onto = (along @ along.T).to(prior.dtype)
        distance = TUNED.closeness**2 * (prior - common).square().sum(1).mean()
        self.roots = self._roots(distance)
        if "spread" in tensors:
            self.outward = tensors["directions"] @ tensors["spread"]
        else:
            self.outward = tensors["directions"]

    def _roots(self, squared_distance: Tensor) -> Tensor:
        """Roots of the classes' covariances as rows are drawn with, ``[C, k, k]``: between class
        means, and the rest, independent of it.
        """
        covariances = self.tensors["prior_covariances"]
        onto = self.onto
        beyond = torch.eye(len(onto), device=onto.device) - onto
        count = onto.trace().clamp_min(1e-12)
        inside = onto @ covariances @ onto
        variance = inside.diagonal(dim1=1, dim2=2).sum(1).mean() / count
        wanted = (squared_distance / count / TUNED.overlap).clamp_min(TUNED.least_between)
        return (wanted / variance.clamp_min(1e-12)).sqrt() * square_root(inside) + square_root(
            beyond @ covariances @ beyond
        )

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``."""
        t = self.tensors
        directions = self.tensors["directions"]
        alone = (
            torch.arange(len(labels), device=labels.device),
            torch.zeros_like(labels, dtype=torch.bool),
        )
        if self.paired:
            source, second = pairs(labels)
        else:
            source, second = alone
        draws = normal((len(labels) - int(second.sum()), len(t["root"])), stream, labels)
        w = (orthogonal(draws) if self.paired else draws)[source]
        inside = w @ directions
        sign = 1 - 2 * second.float()[:, None]
        between = inside @ self.onto
        drawn = torch.zeros_like(inside)
        for label, root in enumerate(self.roots):
            drawn = drawn + (labels == label).float()[:, None] * (
                (between + sign * (inside - between)) @ root
            )
        drawn = self.means[labels] + drawn
        # what does not lie between class means is symmetric: with either sign it has the same law
        w = sign * (w - inside @ directions.T) + drawn @ self.outward.T
        made: Tensor = t["centre"] + t["radius"] * (t["middle"] + w @ t["root"])
        return made


def pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a label in pairs, in their order: which pair's draws each row takes ``[n]``, and
    whether it is the pair's second ``[n]``.
    """
    place = places(labels)
    made = (torch.bincount(labels) + 1) // 2
    return (made.cumsum(0) - made)[labels] + place // 2, (place % 2).bool()


def by_shares(labels: Tensor, shares: Tensor, together: int) -> Tensor:
    """A site for every row ``[n]``, as frequent in each label as ``shares`` ``[K]``, the same for
    so many rows ``together``.
    """
    groups = -(-torch.bincount(labels) // together)
    quantile = (places(labels) // together + 0.5) / groups[labels]
    return torch.searchsorted(shares.cumsum(0) / shares.sum(), quantile.to(shares.dtype)).clamp_max(
        len(shares) - 1
    )


def orthogonal(draws: Tensor) -> Tensor:
    """Independent standard normal rows ``[n, d]``, turned so that they are orthogonal; more than d
    of them as far as so many can be.

    Together they then vary as much along one direction as along another. Each keeps its length, and
    its direction is still uniform, so it is still standard normal (Yu et al. 2016, "Orthogonal
    random features", arXiv 1610.09072; here for any n, by the polar factor).
    """
    turned = []
    for part in draws.chunk(max(1, -(-len(draws) // TUNED.together))):
        rows = part.double()
        tall = len(rows) > rows.shape[1]
        # by the smaller Gram matrix, in half the time of what polar does for any matrix
        root = spectral_function(
            rows.T @ rows if tall else rows @ rows.T, lambda values: values.clamp_min(1e-9).rsqrt()
        )
        if tall:
            found = rows @ root
        else:
            found = root @ rows
        turned.append(found * (rows.norm(dim=1, keepdim=True) / found.norm(dim=1, keepdim=True)))
    return torch.cat(turned).to(draws.dtype)


class SitesGenerator(BlockGenerator):
    """The shared one, which has a version for every client, with shifts of the prior's means and a
    covariance of the block of its own.

    Where sites have centres of their own, the shared one's rows are about all of them, each as
    often as its site has rows.
    """

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]`` of all sites."""
        t = self.tensors
        site = by_shares(labels, t["client_rows"], 2 if self.paired else 1)
        return super().sample(labels, stream) + (t["client_centres"] - t["centre"])[site]

    def of_client(self, client: int) -> BlockGenerator:
        """About the client's own centre: its block is whitened by its covariance, drawn as
        everybody's, about its own means, and spread.
        """
        t = self.tensors
        covariance = t["site_covariances"][client]
        spread = spectral_function(
            covariance, lambda values: values.clamp(TUNED.narrowest, TUNED.widest).sqrt()
        )
        white = spectral_function(
            covariance, lambda values: values.clamp(TUNED.narrowest, TUNED.widest).rsqrt()
        )
        # S^(1/2) (n + S^(-1/2) m) has the mean m and the site's covariance S relative to what all
        # share, n the class's normal about 0
        means = (t["prior_means"] + t["shifts"][client]) @ white
        return BlockGenerator(
            t | {"centre": t["client_centres"][client], "prior_means": means, "spread": spread},
            self.paired,
        )
