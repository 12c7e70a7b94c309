"""The block: the few whitened directions that separate classes.

In these directions alone, the moments of classes and of sites are released once more, with little
noise. In whitened coordinates ``w = Sigma^(-1/2) r`` of centred rows r, classes with the common
covariance Sigma are N(m_c, I). The log ratio of two of their densities is ``(m_a - m_b) . w`` plus
a constant, so only the C - 1 directions between class means separate classes (linear discriminant
analysis, Fisher 1936). The directions in which the data vary most are added as far as the noise
allows. A block of k directions needs k^2 numbers per class, and all d directions would need d^2.
Every number gets noise of the same variance. So the noise on a block has k / d of the length of the
noise on all directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsim.device import normal
from fedsim.methods.one_shot import places
from fedsim.privacy.statistics.moments import in_unit_ball, sums_and_counts
from fedsim.privacy.statistics.outer_products import OuterProduct, Products
from fedsim.privacy.statistics.spectral import (
    batches,
    inverse_square_root,
    leading,
    polar,
    spectral_function,
    square_root,
    steady,
)


@dataclass(frozen=True)
class TunedBlock:
    """Constants of the block, all ours: the paper has no closed form.

    benchmarks/results/choices.md lists the data sets on which they were tuned.

    Attributes:
        reach: residuals in the block are clipped at this many times their expected norm, sqrt(k).
        closeness: class means are drawn at this share of their distance from their common mean.
        overlap: the mean square of a coordinate of the drawn class means, about their mean, in
            units of the variance that rows get in it. Real classes overlap more than normal
            distributions with the estimated covariance do. If classes do not overlap, a classifier
            that is trained on the rows does not learn how rows vary.
        least_between: the least variance of rows in a direction between class means, in whitened
            coordinates, where rows have a variance of about 1 within their classes. With nearly
            equal means, ``overlap`` alone would leave almost none.
        together: the largest number of rows that are drawn orthogonal to each other. More would
            gain nothing and need memory.
        narrowest: the least variance of a site in the block, in units of what all sites share.
        widest: the largest such variance.
    """

    reach: float = 1.5
    closeness: float = 0.75
    overlap: float = 1.8
    least_between: float = 0.1
    together: int = 4096
    narrowest: float = 0.1
    widest: float = 10.0


TUNED = TunedBlock()
LEAST_GRAM = 1e-9
"""The smallest eigenvalue of a Gram matrix of draws, a bound against division by zero."""
CLASS_WEIGHTS = {"class_sums": 1.0, "class_second": 1.0}
"""Weights of :func:`class_products` in a row's joint norm; ours."""
SITE_WEIGHTS = {
    "site_sums": 1.0,
    "site_counts": 0.3,
    "site_second": 0.4,
    "site_class_sums": 1.0,
    "site_class_counts": 0.3,
}
"""Weights of :func:`site_products` in a row's joint norm; ours, tuned like the constants."""


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
    means: Tensor,
    values: Tensor,
    vectors: Tensor,
    size: int,
    outward: Tensor,
) -> ClassBlock:
    """Return the block of the directions between class means and the leading ones of the data.

    It has at least one direction, even if class means are equal.

    Args:
        means: class means ``[C, d]``.
        values: the estimated eigenvalues of the covariance within classes, descending, ``[d]``.
        vectors: its eigenvectors ``[d, d]``.
        size: the largest number of directions. If more lie between class means, those are taken in
            which whitened class means vary most. Directions that cannot be told apart are taken
            together or not at all, so there may be fewer.
        outward: ``[d, d]``, takes whitened rows to embeddings.
    """
    inverse_root = (vectors * values.rsqrt()) @ vectors.T
    centred_means = (means - means.mean(0)).double()
    of_means = between(centred_means @ inverse_root, size)
    covariance = outward.double().T @ outward.double()
    # float32 cannot represent directions of less variance.
    least = 1e-6 * float(covariance.trace().clamp_min(1e-12))
    count = max(0, min(size, len(values)) - of_means.shape[1])
    variances, axes = leading(covariance, count, least)
    of_data = outward.double() @ axes / variances.sqrt()
    if of_means.shape[1] + of_data.shape[1] == 0:
        # Class means are equal and leading directions cannot be told apart. Any direction will do
        # if it is the same on every processor.
        of_data = torch.eye(len(values), dtype=values.dtype, device=values.device)[:, :1]
    columns = of_means
    if of_data.shape[1]:
        orthogonal_part = of_data - of_means @ (of_means.T @ of_data)
        columns = torch.cat([of_means, polar(orthogonal_part)], 1)
    directions = steady(columns)
    return ClassBlock(
        directions.float(),
        (inverse_root @ directions).float(),
    )


def residuals(
    r: Tensor,
    y: Tensor,
    basis: Tensor,
    means: Tensor,
) -> Tensor:
    """Return the residuals of rows in the block, clipped to norm 1, ``[N, k]``.

    A residual is what is left of a row's coordinates in the block after its class mean is
    subtracted, in units of :func:`reach`.

    Args:
        r: centred rows ``[N, d]``.
        y: their labels ``[N]``.
        basis: :attr:`ClassBlock.basis` ``[d, k]``.
        means: class means in the block ``[C, k]``.
    """
    deviations = r @ basis - means[y]
    return in_unit_ball(deviations / reach(basis.shape[1]))


def reach(size: int) -> float:
    """Return the norm at which residuals of ``size`` directions are clipped."""
    return TUNED.reach * math.sqrt(size)


def class_products(
    u: Tensor,
    y: Tensor,
    classes: int,
) -> Products:
    """Return sums ``[C, k]`` and second moments ``[C k, k]`` of every class's residuals."""
    return {
        "class_sums": OuterProduct.sums(u, y, classes),
        "class_second": OuterProduct(u, u, y, classes),
    }


def site_products(
    u: Tensor,
    y: Tensor,
    site: Tensor,
    classes: int,
    sites: int,
) -> Products:
    """Return statistics of residuals by site, and by class within each site.

    Args:
        u: residuals ``[N, k]``.
        y: their labels ``[N]``.
        site: their sites ``[N]``.
        classes: the number of classes C.
        sites: the number of sites K.

    Returns:
        For every site sums ``[K, k]``, counts ``[K, 1]`` and second moments
        ``[K, k (k + 1) / 2]``, each an upper triangle; for every class of every site sums
        ``[K C, k]`` and counts ``[K C, 1]``.
    """
    class_of_site = site * classes + y
    return {
        **sums_and_counts(u, site, sites, "site"),
        "site_second": OuterProduct(u, u, site, sites, symmetric=True),
        **sums_and_counts(u, class_of_site, sites * classes, "site_class"),
    }


def from_upper_triangles(values: Tensor, size: int) -> Tensor:
    """Return symmetric matrices ``[K, k, k]`` from their upper triangles.

    :func:`fedsim.privacy.statistics.outer_products.upper_triangle` makes these triangles.
    """
    row, column = torch.triu_indices(size, size, device=values.device)
    scale = torch.where(row == column, 0.5, math.sqrt(0.5))
    halves = values.new_zeros(len(values), size, size)
    halves[:, row, column] = values * scale
    return halves + halves.transpose(1, 2)


def between(centred_means: Tensor, most: int | None = None) -> Tensor:
    """Return orthonormal columns ``[d, k]`` that span the class means about their mean.

    There are C - 1 columns, or fewer if class means span fewer directions.

    Args:
        centred_means: the class means minus their mean ``[C, d]``, float64.
        most: the largest number of columns; None: no limit. If class means span more directions,
            those are taken in which they vary most. Of directions in which they vary alike, all
            or none are taken.
    """
    # With M M^T = V diag(l) V^T, the columns of M^T V diag(l)^(-1/2) are the right singular vectors
    # of M: this decomposes a matrix of C x C, not of d x d.
    gram = centred_means @ centred_means.T
    floor = 1e-6 * float(gram.trace().clamp_min(1e-12))
    count = len(centred_means) - 1
    if most is not None:
        count = min(count, most)
    squared, vectors = leading(gram, count, floor)
    return centred_means.T @ vectors / squared.sqrt()


class BlockGenerator:
    """A generator of ``x = centre + radius (middle + w root)``, where the row w is standard normal.

    In the block w has the normal distribution of its class instead. This is a linear-Gaussian CVAE:
    z = w, the decoder is affine, and the prior p(z | y, v) has a mean and a covariance by class,
    and by site if there are sites. Class means are drawn closer together and classes overlap as
    :data:`TUNED` says.

    If ``paired``, rows of a label come in pairs (antithetic variates, Hammersley and Morton 1956).
    In the directions between class means, both rows of a pair have the same coordinates. In all
    other directions they deviate from the mean in opposite ways. The draws of different pairs are
    orthogonal to each other. Each row keeps the distribution of the model. The coordinates that say
    nothing about the class cancel within each pair. Over all pairs, these coordinates vary as much
    as was estimated. So a classifier does not take a random deviation in them for a difference
    between classes.

    Args:
        tensors: what was released. ``spread`` ``[k, k]``, if there is one, multiplies the drawn
            coordinates in the block.
        paired: draw rows in pairs.

    Attributes:
        means: the means with which classes are drawn ``[C, k]``.
        squared_distance: the mean squared distance of ``means`` from their mean.
        onto: the projection onto the directions between class means ``[k, k]``.
        outward: takes coordinates in the block to whitened rows ``[d, k]``.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        paired: bool = True,
    ) -> None:
        self.tensors = tensors
        self.paired = paired
        prior = tensors["prior_means"]
        common = prior.mean(0)
        centred = prior - common
        self.means = common + TUNED.closeness * centred
        axes = between(centred.double())
        self.onto = (axes @ axes.T).to(prior.dtype)
        self.squared_distance = TUNED.closeness**2 * centred.square().sum(1).mean()
        self.outward = tensors["directions"]
        if "spread" in tensors:
            self.outward = tensors["directions"] @ tensors["spread"]

    @cached_property
    def roots(self) -> Tensor:
        """The roots of the covariances with which classes are drawn, ``[C, k, k]``.

        Coordinates between class means are drawn independently of all others: the covariances of
        the two parts with each other are left out. The roots are computed when rows are first
        drawn, because those of a thousand classes take long.
        """
        onto = self.onto
        beyond = torch.eye(len(onto), device=onto.device) - onto
        count = onto.trace().clamp_min(1e-12)  # the number of directions between class means
        covariances = self.tensors["prior_covariances"]
        parts = batches(covariances)
        traces = [(onto @ part @ onto).diagonal(dim1=1, dim2=2).sum(1) for part in parts]
        variance = torch.cat(traces).mean() / count
        wanted = self.squared_distance / count / TUNED.overlap
        wanted = wanted.clamp_min(TUNED.least_between)
        scale = (wanted / variance.clamp_min(1e-12)).sqrt()
        roots = torch.empty_like(covariances)
        for part, some_roots in zip(parts, batches(roots), strict=True):
            inside = square_root(onto @ part @ onto)
            some_roots.copy_(scale * inside + square_root(beyond @ part @ beyond))
        return roots

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        t = self.tensors
        directions = t["directions"]
        if self.paired:
            source, is_second = pairs(labels)
        else:
            source = torch.arange(len(labels), device=labels.device)
            is_second = torch.zeros_like(labels, dtype=torch.bool)
        draw_count = len(labels) - int(is_second.sum())
        draws = normal((draw_count, len(t["root"])), stream, labels)
        if self.paired:
            draws = orthogonal(draws)
        w = draws[source]
        sign = 1 - 2 * is_second.float()[:, None]
        # Only coordinates between class means keep their sign. The distribution of all others is
        # symmetric about 0, so it is the same with either sign.
        in_block = w @ directions
        in_means = in_block @ self.onto
        mirrored = in_means + sign * (in_block - in_means)
        drawn = torch.empty_like(in_block)
        for label in torch.unique(labels).tolist():
            of_label = (labels == label).nonzero()[:, 0]
            drawn[of_label] = mirrored[of_label] @ self.roots[label]
        drawn = self.means[labels] + drawn
        outside = sign * (w - in_block @ directions.T)
        w = outside + drawn @ self.outward.T
        samples: Tensor = t["centre"] + t["radius"] * (t["middle"] + w @ t["root"])
        return samples


def pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Group the rows of each label into pairs, in their order.

    Returns:
        The number of the draw that each row takes ``[n]``, the same for both rows of a pair, and
        whether it is the second row of its pair ``[n]``.
    """
    place = places(labels)
    pairs_of_label = (torch.bincount(labels) + 1) // 2
    first_pair = pairs_of_label.cumsum(0) - pairs_of_label
    return first_pair[labels] + place // 2, (place % 2).bool()


def by_shares(
    labels: Tensor,
    shares: Tensor,
    together: int,
) -> Tensor:
    """Return a site for every row, ``[n]``; in every label, sites are as frequent as their shares.

    Args:
        labels: the label of every row ``[n]``.
        shares: the shares of the sites ``[K]``, in any unit.
        together: the number of successive rows of a label that get the same site.
    """
    groups = -(-torch.bincount(labels) // together)
    quantile = (places(labels) // together + 0.5) / groups[labels]
    cumulative = shares.cumsum(0) / shares.sum()
    site = torch.searchsorted(cumulative, quantile.to(shares.dtype))
    return site.clamp_max(len(shares) - 1)


def orthogonal(draws: Tensor) -> Tensor:
    """Rotate independent standard normal rows ``[n, d]`` so that they are orthogonal.

    More than d rows cannot all be orthogonal. They become as orthogonal as possible, so that
    together they vary about equally along all directions. Each row keeps its length, and its
    direction is still uniform, so it is still standard normal (Yu et al. 2016, "Orthogonal random
    features", arXiv 1610.09072; the polar factor extends this to any n). At most
    ``TUNED.together`` rows are rotated together.
    """
    chunks = max(1, -(-len(draws) // TUNED.together))
    rotated = []
    for chunk in draws.chunk(chunks):
        rows = chunk.double()
        # The smaller Gram matrix takes half the time of `polar`, which serves any matrix.
        if len(rows) > rows.shape[1]:
            directions = rows @ inverse_square_root(rows.T @ rows, LEAST_GRAM)
        else:
            directions = inverse_square_root(rows @ rows.T, LEAST_GRAM) @ rows
        scale = rows.norm(dim=1, keepdim=True) / directions.norm(dim=1, keepdim=True)
        rotated.append(directions * scale)
    return torch.cat(rotated).to(draws.dtype)


class SitesGenerator(BlockGenerator):
    """A shared generator that also has a version for every site.

    A site's version has its own shifts of the prior's means and its own covariance of the block. If
    sites have their own centres, each row of the shared generator lies about one of them. The
    centres are used in proportion to the numbers of rows of their sites.
    """

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` of all sites."""
        t = self.tensors
        site = by_shares(labels, t["client_rows"], 2 if self.paired else 1)
        offsets = t["client_centres"] - t["centre"]
        return super().sample(labels, stream) + offsets[site]

    def of_client(self, client: int) -> BlockGenerator:
        """Return the generator of one site.

        Its rows lie around the centre of the site. In the block, coordinates are first whitened by
        the site's covariance. Then rows are drawn around the site's class means, as for the shared
        generator. At the end the whitening is undone.
        """
        t = self.tensors
        covariance = t["site_covariances"][client]
        spread = spectral_function(covariance, lambda values: _clamp(values).sqrt())
        inverse_spread = spectral_function(covariance, lambda values: _clamp(values).rsqrt())
        # Let S be the site's covariance relative to what all sites share, and n a draw of the class
        # about 0. Then S^(1/2) (n + S^(-1/2) m) has the mean m and the covariance
        # S^(1/2) cov(n) S^(1/2).
        means = (t["prior_means"] + t["shifts"][client]) @ inverse_spread
        of_site = {
            "centre": t["client_centres"][client],
            "prior_means": means,
            "spread": spread,
        }
        return BlockGenerator(t | of_site, self.paired)


def _clamp(variances: Tensor) -> Tensor:
    """Return a site's variances, clamped to ``TUNED.narrowest`` and ``TUNED.widest``."""
    return variances.clamp(TUNED.narrowest, TUNED.widest)
