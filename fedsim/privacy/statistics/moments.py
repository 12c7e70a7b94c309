"""Class-conditional Gaussians from noisy moments: the statistics and their estimates.

Rows are embeddings, or vectors made from them. Rows of unit norm share a large mean. They are
centred first, so they are short and can be clipped to a small ball, and the noise shrinks with the
radius of the ball. The estimates take the noise of the statistics into account. The means of
clients and the histogram of distances from the mean are here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedsim.models.layers import one_hot
from fedsim.privacy.noise import Deviations
from fedsim.privacy.statistics import spectral
from fedsim.privacy.statistics.outer_products import OuterProduct, Products, exact_squares

MEAN_WEIGHTS = {"sum": 1.0, "count": 0.3}
"""Weights of :func:`mean_products` in a row's joint norm."""
CLASS_MEAN_WEIGHTS = {"class_sums": 1.0, "class_counts": 0.15}
"""Weights of :func:`class_mean_products` in a row's joint norm."""
CLIENT_WEIGHTS = {"client_sums": 1.0, "client_counts": 0.15}
"""Weights of the :func:`sums_and_counts` of clients in a row's joint norm."""
MOMENT_WEIGHTS = {"class_sums": 1.0, "class_counts": 0.15, "second": 0.7}
"""Weights of :func:`moment_products` in a row's joint norm."""
LEAST_SQUARE = 1e-6
"""The smallest mean squared distance, a bound against division by zero."""
PRIOR_ERROR = 0.05
"""The standard deviation of the prior belief about the rows' mean squared norm."""


def mean_products(x: Tensor) -> Products:
    """Return the sum and the count of rows ``[N, d]`` of norm at most 1."""
    ones = x.new_ones(len(x), 1)
    return {"sum": OuterProduct(ones, x), "count": OuterProduct(ones, ones)}


@dataclass(frozen=True)
class ReleasedMean:
    """A released mean and how well it is known.

    Attributes:
        mean: the estimate ``[d]``. It is shrunk towards 0, the more the larger its noise is (James
            and Stein 1961), because for few rows in many dimensions the noise is longer than the
            mean.
        error: the expected squared distance of ``mean`` from the true one.
        rows: the number of rows, at least 1.
    """

    mean: Tensor
    error: Tensor
    rows: Tensor


def released_mean(
    sums: Mapping[str, Tensor],
    std: Deviations,
) -> ReleasedMean:
    """Estimate the mean from the released sums of :func:`mean_products`.

    Args:
        sums: the sum ``[1, d]`` and the count ``[1, 1]``, their weights divided out.
        std: the standard deviation of the noise on each.
    """
    rows = sums["count"].clamp_min(1.0)[0]
    mean = sums["sum"][0] / rows
    # The expected squared norm of the noise, and what the mean's squared norm has beyond it.
    noise_square = len(mean) * (std["sum"] / rows[0]).square()
    # Rows have norm at most 1, and so has their mean.
    signal_square = (mean.square().sum() - noise_square).clamp(0, 1)
    shrinkage = signal_square / (signal_square + noise_square).clamp_min(1e-30)
    return ReleasedMean(
        shrinkage * mean,
        shrinkage * noise_square,
        rows[0],
    )


def in_unit_ball(r: Tensor) -> Tensor:
    """Return rows ``[N, d]``, those of a norm above 1 scaled to norm 1."""
    clipped: Tensor = r / r.norm(dim=1, keepdim=True).clamp_min(1.0)
    return clipped


def moment_products(
    r: Tensor,
    y: Tensor,
    classes: int,
) -> Products:
    """Return class sums, class counts and one second moment of rows ``[N, d]`` of norm <= 1."""
    return class_mean_products(r, y, classes) | {"second": OuterProduct(r, r)}


def class_mean_products(
    r: Tensor,
    y: Tensor,
    classes: int,
) -> Products:
    """Return class sums and class counts of rows ``[N, d]`` of norm at most 1."""
    return sums_and_counts(r, y, classes, "class")


def sums_and_counts(
    x: Tensor,
    group: Tensor,
    groups: int,
    kind: str,
) -> Products:
    """Return the sum and the count of the rows of every group, such as a class or a client.

    Args:
        x: rows ``[N, d]`` of norm at most 1.
        group: the group of every row ``[N]``.
        groups: the number of groups G.
        kind: the kind of the groups. The sums ``[G, d]`` are named ``<kind>_sums``, and the counts
            ``[G, 1]`` are named ``<kind>_counts``.
    """
    ones = x.new_ones(len(x), 1)
    return {
        f"{kind}_sums": OuterProduct.sums(x, group, groups),
        f"{kind}_counts": OuterProduct.sums(ones, group, groups),
    }


def counts_above_noise(counts: Tensor, std: float) -> Tensor:
    """Return released counts that it is safe to divide by.

    A smaller count is raised to 1, or to twice the standard deviation ``std`` of its noise if that
    is more.
    """
    return counts.clamp_min(max(1.0, 2 * std))


def client_means(
    sums: Tensor,
    counts: Tensor,
    std: Deviations,
) -> Tensor:
    """Return every client's mean ``[K, d]``, shrunk towards the mean that the clients share.

    A mean is shrunk the more, the larger its noise is beside the variance between the true means.
    That variance is estimated as by DerSimonian and Laird (1986, "Meta-analysis in clinical
    trials"): noisy clients count little. If no client stands out of the noise, all get the same
    mean.

    Args:
        sums: the released sum of every client, ``[K, d]``.
        counts: the released count of every client, ``[K, 1]``.
        std: the standard deviations of their noise, by the names of :data:`CLIENT_WEIGHTS`.
    """
    rows = counts_above_noise(counts, std["client_counts"]).double()
    means = sums.double() / rows
    # Noise in a count rescales the whole mean. This error is counted as if all directions had the
    # same share of it.
    sum_noise = (std["client_sums"] / rows).square()
    count_noise = (std["client_counts"] / rows).square()
    mean_square = means.square().mean(1, keepdim=True)
    noise = (sum_noise + mean_square * count_noise).clamp_min(1e-12)  # [K, 1], a variance
    weight = 1 / noise
    total = weight.sum()
    weighted_mean = (weight * means).sum(0) / total
    scatter = (weight * (means - weighted_mean).square()).sum(0).mean()  # Cochran's Q
    excess = scatter - (len(rows) - 1)
    scale = (total - weight.square().sum() / total).clamp_min(1e-12)
    signal = (excess / scale).clamp_min(0)
    precision = 1 / (signal + noise)
    shared = (precision * means).sum(0) / precision.sum()
    return (shared + signal * precision * (means - shared)).to(sums.dtype)


@dataclass(frozen=True)
class Gaussians:
    """Noisy moments of centred rows, in units of the radius of the ball to which they are clipped.

    Attributes:
        counts: the number of rows per class, ``[C]``, at least 1 each.
        means: the class means, ``[C, d]``.
        mean_noise: the variance of the noise on each entry of a class mean, ``[C]``.
        second: the second moment, ``[d, d]``, symmetric.
        noise: the standard deviation of the noise on an off-diagonal entry of ``second``.
    """

    counts: Tensor
    means: Tensor
    mean_noise: Tensor
    second: Tensor
    noise: float

    @cached_property
    def covariance(self) -> Tensor:
        """The pooled covariance within classes, ``[d, d]``, without the noise of the means."""
        return within(
            self.second,
            self.means,
            self.mean_noise,
            self.counts,
        )


def gaussians(
    sums: Mapping[str, Tensor],
    std: Deviations,
    squared_norm: Tensor | None = None,
) -> Gaussians:
    """Estimate class means and the second moment from the sums of :func:`moment_products`.

    The trace of the second moment is an estimate of the rows' mean squared norm. For few rows in
    many dimensions it is mostly noise. So if ``squared_norm`` is given, the trace is replaced by
    the mean of both, weighted by their precision.

    Args:
        sums: the released sums, their weights divided out.
        std: the standard deviation of the noise on each.
        squared_norm: the believed mean squared norm, within :data:`PRIOR_ERROR`; None if unknown.
    """
    counts = counts_above_noise(
        sums["class_counts"][:, 0],
        std["class_counts"],
    )
    total = counts.sum()
    means = sums["class_sums"] / counts[:, None]
    mean_noise = (std["class_sums"] / counts).square()
    # The two triangles carry independent noise, so their mean has half the variance.
    moment = (sums["second"] + sums["second"].T) / 2 / total
    if squared_norm is not None:
        dim = len(moment)
        trace_noise = dim * (std["second"] / total).square()
        trace_weight = PRIOR_ERROR**2 / (PRIOR_ERROR**2 + trace_noise)
        correction = (1 - trace_weight) * (squared_norm - moment.trace()) / dim
        moment = moment + correction * torch.eye(dim, device=moment.device)
    noise = std["second"] / math.sqrt(2) / float(total)
    return Gaussians(counts, means, mean_noise, moment, noise)


def within(
    moment: Tensor,
    means: Tensor,
    noise: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return the covariance within classes ``[d, d]``.

    The part that the class means add to the second moment is subtracted. The noise of the means is
    subtracted with it, so its expected part is added again:

        moment - sum_c share_c mean_c mean_c^T + (sum_c share_c noise_c) I.

    Args:
        moment: the second moment ``[d, d]``.
        means: the class means ``[C, d]``.
        noise: the variance of the noise on each entry of a class mean ``[C]``.
        counts: the number of rows per class ``[C]``.
    """
    share = counts / counts.sum()
    between = (means.T * share) @ means
    mean_noise = (share * noise).sum()
    identity = torch.eye(len(moment), device=moment.device)
    return moment - between + mean_noise * identity


def principal(
    covariance: Tensor,
    noise: float,
    most: int,
) -> tuple[Tensor, Tensor, float]:
    """Return the leading directions of a noisy covariance, and white noise for all the rest.

    A symmetric matrix of independent noise has its largest eigenvalue near ``2 noise sqrt(d)``.
    Eigenvalues above half of that are kept. Directions with less than ``2 noise sqrt(d)`` carry
    little signal, but to replace all of them by white noise costs the probe more than it saves
    (seen on BloodMNIST).

    Args:
        covariance: ``[d, d]``.
        noise: the standard deviation of the noise on an off-diagonal entry.
        most: the largest number of directions.

    Returns:
        An orthonormal basis ``[d, k]`` that depends on its span alone, the covariance in it
        ``[k, k]``, and the variance of white noise. The white noise is to be added in all d
        directions: in total it has the variance of the eigenvalues that are not kept, but at least
        a thousandth of the largest eigenvalue.
    """
    dim = len(covariance)
    floor = max(noise * math.sqrt(dim), 1e-9)
    values, vectors = spectral.leading(covariance, most, floor)
    # One copy from the device instead of two.
    on_cpu = torch.cat([values, covariance.double().trace()[None]]).cpu()
    kept_values = on_cpu[:-1]
    trace = float(on_cpu[-1])
    largest = trace / dim
    if len(kept_values):
        largest = float(kept_values[0])
    remaining = trace - float(kept_values.sum())
    white_variance = max(remaining, 1e-3 * max(largest, 1e-6)) / dim
    basis = spectral.steady(vectors)
    rotation = basis.T @ vectors
    inner = (rotation * values) @ rotation.T
    return basis.float(), inner.float(), white_variance


BINS = 30
"""The number of bins of the histogram of distances.

The largest distance of the first bin is 2, and that of each further bin is 1 / sqrt(2) of the one
before. The first bin has all larger distances too, and the last one all smaller ones.
"""
SEEN = 3.0
"""The number of standard deviations of noise that a bin's count must exceed to be used."""


def distance_products(r: Tensor) -> Products:
    """Return a histogram ``[1, BINS]`` of the norms of rows ``[N, d]``.

    A row is in one bin, so its removal changes one count by 1.
    """
    is_below = exact_squares(r) <= largest_squares(r.device)  # [N, BINS]
    # A row is below the limits of its own bin and of all bins before it.
    bins = is_below.sum(1) - 1
    ones = r.new_ones(len(r), 1)
    return {"bins": OuterProduct(ones, one_hot(bins.clamp_min(0), BINS))}


def largest_squares(device: torch.device) -> Tensor:
    """Return the largest squared distance of every bin, ``[BINS]``."""
    return 4 * 0.5 ** torch.arange(BINS, device=device)


def released_distances(
    bins: Tensor,
    std: float,
    square: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the distances from the released sums of :func:`distance_products`.

    Args:
        bins: the released counts ``[1, BINS]``.
        std: the standard deviation of the noise on each.
        square: the mean squared distance that was expected before this release.

    Returns:
        The mean squared distance, the counts of the bins ``[BINS]``, and the largest squared
        distances of the bins ``[BINS]``. The mean squared distance is the expected one, moved into
        the bounds that the bins set, or unchanged if no bin stands out of the noise. A count that
        noise hides is 0.
    """
    counts = torch.where(bins[0] > SEEN * std, bins[0], 0.0)
    squares = largest_squares(counts.device)
    upper_bound = (counts * squares).sum() / counts.sum().clamp_min(1e-9)
    lower_bound = upper_bound / 2
    bounded = torch.minimum(torch.maximum(square, lower_bound), upper_bound)
    believed = torch.where(counts.sum() > 0, bounded, square)
    return believed, counts, squares
