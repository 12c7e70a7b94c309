"""Class-conditional Gaussians from noisy moments: the statistics, and estimates that know how noisy
they are.

Centring first matters: rows of unit norm share a large mean, and what remains after it is small, so
it can be clipped to a small ball and the noise shrinks with the ball's radius.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsim.models.layers import one_hot
from fedsim.privacy.statistics import spectral
from fedsim.privacy.statistics.outer_products import OuterProduct, exact_squares

Products = dict[str, OuterProduct]
MEAN_WEIGHTS = {"sum": 1.0, "count": 0.3}
CLASS_MEAN_WEIGHTS = {"class_sums": 1.0, "class_counts": 0.15}
CLIENT_WEIGHTS = {"client_sums": 1.0, "client_counts": 0.15}
MOMENT_WEIGHTS = {"class_sums": 1.0, "class_counts": 0.15, "second": 0.7}
LEAST_SQUARE = 1e-6
"""A mean squared distance is no smaller."""
PRIOR_ERROR = 0.05
"""Standard deviation of what is believed of the rows' mean squared norm, before it is seen."""


def mean_products(x: Tensor) -> Products:
    """Sum and count of rows ``[N, d]`` of norm at most 1."""
    ones = x.new_ones(len(x), 1)
    return {"sum": OuterProduct(ones, x), "count": OuterProduct(ones, ones)}


@dataclass(frozen=True)
class ReleasedMean:
    """A mean and how well it is known.

    Attributes:
        mean: ``[d]``, shrunk to 0 by its noise (James and Stein 1961): of few rows in many
            dimensions the noise is longer than the mean.
        error: the squared distance of ``mean`` from the true one, as it is expected.
        rows: how many there are, at least 1.
    """

    mean: Tensor
    error: Tensor
    rows: Tensor


def released_mean(sums: Mapping[str, Tensor], std: Mapping[str, float]) -> ReleasedMean:
    """From the released sum ``[1, d]`` and count ``[1, 1]`` of :func:`mean_products`, the weights
    divided out, and their noise.
    """
    rows = sums["count"].clamp_min(1.0)[0]
    mean = sums["sum"][0] / rows
    noise = len(mean) * (std["sum"] / rows[0]).square()
    # rows have norm at most 1, and so has their mean
    squared = (mean.square().sum() - noise).clamp(0, 1)
    kept = squared / (squared + noise).clamp_min(1e-30)
    return ReleasedMean(kept * mean, kept * noise, rows[0])


def in_unit_ball(r: Tensor) -> Tensor:
    """Rows ``[N, d]``, those of a norm above 1 scaled to 1."""
    clipped: Tensor = r / r.norm(dim=1, keepdim=True).clamp_min(1.0)
    return clipped


def moment_products(r: Tensor, y: Tensor, classes: int) -> Products:
    """Class sums, class counts and one shared second moment of rows ``[N, d]`` of norm at most
    1.
    """
    return class_mean_products(r, y, classes) | {"second": OuterProduct(r, r)}


def class_mean_products(r: Tensor, y: Tensor, classes: int) -> Products:
    """Class sums and class counts of rows ``[N, d]`` of norm at most 1."""
    onehot = one_hot(y, classes)
    return {
        "class_sums": OuterProduct(onehot, r),
        "class_counts": OuterProduct(onehot, r.new_ones(len(r), 1)),
    }


def counts_above_noise(counts: Tensor, std: float) -> Tensor:
    """Released counts to divide by: none is below 1, or below twice the standard deviation of its
    noise.
    """
    return counts.clamp_min(max(1.0, 2 * std))


def client_mean_products(x: Tensor, client: Tensor, clients: int) -> Products:
    """Sum and count of every client's rows ``[N, d]`` of norm at most 1."""
    onehot = one_hot(client, clients)
    return {
        "client_sums": OuterProduct(onehot, x),
        "client_counts": OuterProduct(onehot, x.new_ones(len(x), 1)),
    }


def client_means(sums: Tensor, counts: Tensor, std: Mapping[str, float]) -> Tensor:
    """Every client's mean ``[K, d]``, shrunk towards what the clients share: by its own noise,
    against how far they truly are apart.

    That distance is DerSimonian and Laird's estimate (1986, "Meta-analysis in clinical trials"), in
    which noisy clients count little; where nothing stands out of the noise all get the same mean.
    ``sums`` ``[K, d]`` and ``counts`` ``[K, 1]`` carry noise of ``std``, by the names of
    :func:`client_mean_products`.
    """
    rows = counts_above_noise(counts, std["client_counts"]).double()
    means = sums.double() / rows
    # noise in a count stretches the whole mean; what that adds along it is told of all directions
    # alike
    noise = (
        (std["client_sums"] / rows).square()
        + means.square().mean(1, keepdim=True) * (std["client_counts"] / rows).square()
    ).clamp_min(1e-12)
    weight = 1 / noise
    total = weight.sum()
    beyond = (weight * (means - (weight * means).sum(0) / total).square()).sum(0).mean() - (
        len(rows) - 1
    )
    signal = (beyond / (total - weight.square().sum() / total).clamp_min(1e-12)).clamp_min(0)
    kept = 1 / (signal + noise)
    shared = (kept * means).sum(0) / kept.sum()
    return (shared + signal * kept * (means - shared)).to(sums.dtype)


@dataclass(frozen=True)
class Gaussians:
    """Noisy moments of the centred rows, in units of the radius.

    Attributes:
        counts: rows per class, ``[C]``, at least 1 each.
        means: class means, ``[C, d]``.
        mean_noise: variance of each entry of a class mean, ``[C]``.
        second: second moment, ``[d, d]``, symmetric.
        noise: standard deviation of an off-diagonal entry of ``second``.
    """

    counts: Tensor
    means: Tensor
    mean_noise: Tensor
    second: Tensor
    noise: float

    @cached_property
    def covariance(self) -> Tensor:
        """The pooled covariance within classes, ``[d, d]``; the noise of the means taken out."""
        return within(self.second, self.means, self.mean_noise, self.counts)


def gaussians(
    sums: Mapping[str, Tensor], std: Mapping[str, float], squared_norm: Tensor | None = None
) -> Gaussians:
    """Class means and covariance from the released sums of :func:`moment_products`, the weights
    divided out, and their noise ``std``.

    ``squared_norm`` is the rows' mean squared norm as it is believed, within :data:`PRIOR_ERROR`.
    The second moment's trace says it, too, and each counts by its precision: of few rows in many
    dimensions the trace is noise.
    """
    counts = counts_above_noise(sums["class_counts"][:, 0], std["class_counts"])
    total = counts.sum()
    means = sums["class_sums"] / counts[:, None]
    mean_noise = (std["class_sums"] / counts).square()
    # the two triangles carry independent noise, so their mean has half the variance
    moment = (sums["second"] + sums["second"].T) / 2 / total
    if squared_norm is not None:
        noise_of_trace = len(moment) * (std["second"] / total).square()
        kept = PRIOR_ERROR**2 / (PRIOR_ERROR**2 + noise_of_trace)
        moment = moment + (1 - kept) * (squared_norm - moment.trace()) / len(moment) * torch.eye(
            len(moment), device=moment.device
        )
    noise = std["second"] / math.sqrt(2) / float(total)
    return Gaussians(counts, means, mean_noise, moment, noise)


def within(moment: Tensor, means: Tensor, noise: Tensor, counts: Tensor) -> Tensor:
    """The covariance within classes ``[d, d]``: a second moment without what means ``[C, d]`` add
    to it; their noise ``[C]`` taken out.
    """
    share = counts / counts.sum()
    return (
        moment
        - (means.T * share) @ means
        + (share * noise).sum() * torch.eye(len(moment), device=moment.device)
    )


def principal(covariance: Tensor, noise: float, most: int) -> tuple[Tensor, Tensor, float]:
    """At most ``most`` leading directions of a covariance ``[d, d]`` whose entries off the diagonal
    have ``noise``, a standard deviation.

    A symmetric matrix of independent noise has its largest eigenvalue near ``2 noise sqrt(d)``.
    Eigenvalues above half of that are kept: directions below the edge carry little signal, but
    leaving them white costs the probe more than it saves (seen on BloodMNIST). Returns an
    orthonormal basis ``[d, k]`` that depends on its span alone, the covariance in it ``[k, k]``,
    and the variance of every direction besides.
    """
    dim = len(covariance)
    values, vectors = spectral.leading(covariance, most, max(noise * math.sqrt(dim), 1e-9))
    known = torch.cat([values, covariance.double().trace()[None]]).cpu()
    trace = float(known[-1])
    kept = known[:-1]
    if len(kept):
        largest = float(kept[:1].sum())
    else:
        largest = trace / dim
    rest = max(trace - float(kept.sum()), 1e-3 * max(largest, 1e-6)) / dim
    basis = spectral.steady(vectors)
    turned = basis.T @ vectors
    return basis.float(), ((turned * values) @ turned.T).float(), rest


BINS = 30
"""Half octaves of distance below 2; the last bin has all that are smaller."""
SEEN = 3.0
"""Standard deviations of noise above which a bin's count is believed."""


def distance_products(r: Tensor) -> Products:
    """A histogram ``[1, BINS]`` of the norms of rows ``[N, d]``; a row is in one bin, so its
    removal changes one count by 1.
    """
    bins = (exact_squares(r) <= largest_squares(r.device)).sum(1) - 1
    return {"bins": OuterProduct(r.new_ones(len(r), 1), one_hot(bins.clamp_min(0), BINS))}


def largest_squares(device: torch.device) -> Tensor:
    """The largest squared distance of every bin ``[BINS]``."""
    return 4 * 0.5 ** torch.arange(BINS, device=device)


def released_distances(bins: Tensor, std: float, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean square of the distances, the bins' counts ``[BINS]``, 0 where noise hides them, and
    their largest squares ``[BINS]``.

    From the released sums ``[1, BINS]`` of :func:`distance_products`, the noise on each, and the
    mean square expected before, which is kept within the bounds that the bins set, and where no bin
    stands out of the noise.
    """
    counts = torch.where(bins[0] > SEEN * std, bins[0], 0.0)
    squares = largest_squares(counts.device)
    most = (counts * squares).sum() / counts.sum().clamp_min(1e-9)
    believed = torch.where(
        counts.sum() > 0, torch.minimum(torch.maximum(square, most / 2), most), square
    )
    return believed, counts, squares
