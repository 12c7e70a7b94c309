"""Estimates that take the noise of released values into account.

Here are estimates of eigenvalues under symmetric noise, of the means of many groups, and of the
covariances of many classes. All are computed from released values and the public size of their
noise, so they cost no privacy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.privacy.statistics.spectral import batches, group_means, inverse_square_root, ties

GROWTH = 1.35
"""The factor by which groups of directions that share an estimate grow: 1, 1, 2, 2, 3, ..."""
STEPS = 8
"""The number of fixed-point steps that estimate the variance of a signal."""


def free_eigenvalues(values: Tensor, noise: float) -> Tensor:
    """Return the eigenvalues of a covariance, estimated from those of a noisy version.

    Entry j is the expected variance of the true covariance along the j-th eigenvector of the noisy
    one, which has the eigenvalue y:

        y - 2 tau^2 h(y),

    where h is the Hilbert transform of the observed spectrum and tau the radius parameter of the
    noise's semicircle (Bun, Bouchaud and Potters 2017, arXiv 1610.08104, section 6.3). It is the
    best rotation-invariant estimate in Frobenius norm without any assumption on the eigenvectors.
    Isotonic regression makes the result descending.

    Args:
        values: the noisy eigenvalues y, descending, ``[d]``.
        noise: the standard deviation of the noise on an off-diagonal entry.

    Returns:
        The estimates ``[d]``, never rising.
    """
    if noise <= 0:
        return values
    from sklearn.isotonic import IsotonicRegression

    # For M = A + noise with a semicircle of tau^2, the resolvents satisfy
    # g_M(z) = g_A(z - tau^2 g_M(z)) (Pastur 1972). The mean of A along eigenvectors of M at y is
    # Im tr(A G_M) / Im tr(G_M) = y - 2 tau^2 Re g_M(y), and Re g_M = h. Noise of variance s^2 off
    # the diagonal has tau^2 = d s^2, and h(y) = mean_j 1 / (y - y_j), smoothed at s.
    gaps = values[:, None] - values
    smoothed = gaps.square() + noise**2
    hilbert = (gaps / smoothed).mean(1)
    correction = 2 * noise**2 * len(values) * hilbert
    estimates = (values - correction).cpu().numpy()
    places = range(len(estimates))
    isotonic = IsotonicRegression(increasing=False)
    falling = isotonic.fit_transform(places, estimates)
    return torch.from_numpy(falling).to(values)


def shrunk_along(
    means: Tensor,
    noise: Tensor,
    values: Tensor,
) -> Tensor:
    """Return class means shrunk to their common centre, direction by direction, ``[C, d]``.

    It is the posterior mean under a normal prior, whose variance is estimated from neighbouring
    directions together (empirical Bayes, as Morris 1983). Classes with much noise count little in
    this estimate. So the frequent classes decide how much of a direction is signal, for rare
    classes too. Directions whose variances cannot be told apart share one estimate, so that a
    rotation among them changes nothing.

    Args:
        means: class means ``[C, d]``, in directions of falling variance.
        noise: the variance of the noise on each class's mean, in every direction, ``[C]``.
        values: the variances of the directions, descending, ``[d]``.
    """
    group = ties(values)
    neighbourhood = _neighbourhoods(values)
    noise = noise[:, None]

    def neighbourhood_sums(weighted: Tensor) -> Tensor:
        """Return the sum over classes and directions of each neighbourhood, padded to ``[d]``."""
        by_direction = group_means(weighted.sum(0), group)
        zeros = torch.zeros_like(values)
        return zeros.index_add(0, neighbourhood, by_direction)

    def shared_mean(terms: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted mean over classes and neighbouring directions, ``[d]``."""
        total_weight = neighbourhood_sums(weight * torch.ones_like(terms))
        # There are fewer neighbourhoods than directions: the entries behind them are 0 / 0.
        mean = neighbourhood_sums(weight * terms) / total_weight
        return group_means(mean[neighbourhood], group)

    # The unbiased variance between classes, less the noise.
    classes = len(means)
    unbiased = classes / max(classes - 1, 1)
    deviations = means - means.mean(0)
    scatter = deviations.square() * unbiased
    excess = scatter - noise
    signal = shared_mean(excess, torch.ones_like(means)).clamp_min(1e-12)
    for _ in range(STEPS):
        # About the estimated centre, a class's variance v = signal + noise becomes
        # v (1 - (1 / v) / sum(1 / v)), because the class is itself a part of the centre. What its
        # square says of the signal has variance 2 v^2, hence the weight 1 / v^2: a step of Fisher
        # scoring.
        weight = 1 / (signal + noise)
        total_weight = weight.sum(0)
        centre = (weight * means).sum(0) / total_weight
        share_left = (1 - weight / total_weight).clamp_min(0.05)
        scatter = (means - centre).square() / share_left
        excess = scatter - noise
        signal = shared_mean(excess, weight.square()).clamp_min(1e-12)
    # Means are N(theta_c, noise), theta_c are N(centre, signal), and the centre is
    # N(0, centre_signal), estimated with variance error. The posterior mean of a normal is the
    # estimate times prior variance / (prior variance + error): first for the centre, then about it.
    weight = 1 / (signal + noise)
    total_weight = weight.sum(0)
    centre = (weight * means).sum(0) / total_weight
    error = 1 / total_weight
    centre_excess = (centre.square() - error)[None]
    ones = torch.ones_like(centre_excess)
    centre_signal = shared_mean(centre_excess, ones).clamp_min(0)
    shrunk_centre: Tensor = centre * centre_signal / (centre_signal + error)
    shrinkage = signal / (signal + noise)
    return shrunk_centre + shrinkage * (means - shrunk_centre)


def _neighbourhoods(values: Tensor) -> Tensor:
    """Return the number of the neighbourhood of each direction, ``[d]``.

    A neighbourhood has consecutive directions, and the next one is wider by :data:`GROWTH`.
    """
    numbers: list[int] = []
    width = 1.0
    number = 0
    while len(numbers) < len(values):
        numbers += [number] * round(width)
        width *= GROWTH
        number += 1
    return torch.tensor(numbers[: len(values)], device=values.device)


def james_stein(
    estimates: Tensor,
    noise: Tensor,
    rank: int | None = None,
    steps: int = 0,
) -> Tensor:
    """Return groups' estimates ``[G, k]``, shrunk towards 0 by signal / (signal + noise).

    The variance of the signal is estimated from all groups together. If it does not stand out of
    the noise, it is 0, and so are all results.

    Args:
        estimates: one estimate per group, ``[G, k]``.
        noise: the variance of its noise in every direction, ``[G]``, independent between them.
        rank: the dimension of the space in which the estimates lie; None for k.
        steps: the number of fixed-point steps, which need float64. With steps, a group has the
            weight 1 / (signal + noise)^2 in the estimate of the signal: its square has about that
            precision. With 0 steps it has the weight 1 / noise, which is cautious, because groups
            of little noise then decide for all.
    """
    noise = noise.clamp_min(1e-30)
    if rank is None:
        mean_square = estimates.square().mean(1)
    else:
        mean_square = estimates.square().sum(1) / rank
    weight = torch.ones_like(noise) if steps else 1 / noise
    for _ in range(steps + 1):
        # A group's mean square has the mean signal + noise and, under normals of rank k, the
        # variance 2 (signal + noise)^2 / k. The precision-weighted mean of mean square - noise
        # estimates the signal.
        excess = weight * (mean_square - noise)
        signal = (excess.sum() / weight.sum()).clamp_min(0)
        weight = (signal + noise).square().reciprocal()
    shrinkage = signal / (signal + noise)
    return estimates * shrinkage[:, None]


def of_two(
    first: Tensor,
    noise: Tensor,
    second: Tensor,
    second_noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the precision-weighted mean of two independent estimates, and its variance.

    If neither has noise, both count alike.

    Args:
        first: estimates of G groups ``[G, ...]``.
        noise: their variances ``[G]``.
        second: independent estimates of the same ``[G, ...]``.
        second_noise: their variances ``[G]``.

    Returns:
        The means ``[G, ...]`` and their variances ``[G]``.
    """
    # a x + (1 - a) y has the variance a^2 v + (1 - a)^2 w, which is least at
    # a = (1 / v) / (1 / v + 1 / w).
    precision = 1 / noise.clamp_min(1e-30)
    second_precision = 1 / second_noise.clamp_min(1e-30)
    total = precision + second_precision
    shape = (-1, *[1] * (first.dim() - 1))
    share = (precision / total).view(shape)
    mean = share * first + (1 - share) * second
    return mean, 1 / total


def pooled_and_own(
    second: Tensor,
    means: Tensor,
    counts: Tensor,
    std: float,
) -> Tensor:
    """Return the covariances of all classes ``[C, k, k]``, each shrunk towards the pooled one.

    The pooled covariance is first shrunk towards a multiple of the identity, and its eigenvalues
    are raised to at least a tenth of their mean. A matrix keeps a share of its difference from its
    target: the part of the difference's square that noise does not explain (Ledoit and Wolf 2004).
    For a class, the sampling error counts as noise. A class keeps less if it would otherwise have
    less than a fifth of the pooled variance in some direction.

    Args:
        second: the classes' second moments per row ``[C, k, k]``, symmetric.
        means: the classes' means ``[C, k]``.
        counts: the number of rows per class ``[C]``.
        std: the standard deviation of the noise on an off-diagonal entry of a sum, after its
            triangles were averaged.
    """
    size = second.shape[1]
    total = counts.sum()
    # There are k (k - 1) entries off the diagonal. The k entries on it have twice the variance,
    # because they have no second triangle to average with.
    entries = size * (size + 1)
    # The covariances of a thousand classes are as large as a data set, so few copies are made.
    covariances = second - means.unsqueeze(2) * means.unsqueeze(1)
    class_shares = (counts / total)[:, None, None]
    pooled = (class_shares * covariances).sum(0)
    identity = torch.eye(size, device=pooled.device)
    target = pooled.trace() / size * identity
    pooled_noise = entries * (std / total).square()
    difference = pooled - target
    pooled = target + _share_of_signal(difference, pooled_noise) * difference
    values, vectors = torch.linalg.eigh(pooled.double())
    mean_value = float(values.mean().clamp_min(1e-9))
    values = values.clamp_min(0.1 * mean_value)
    pooled = ((vectors * values) @ vectors.T).to(second.dtype)
    inverse_root = ((vectors * values.rsqrt()) @ vectors.T).to(second.dtype)
    differences = covariances.sub_(pooled)
    # n normal rows of covariance P have E |S - P|^2 = (tr(P)^2 + |P|^2) / n.
    squared_norm = pooled.trace().square() + pooled.square().sum()
    noise_energy = entries * (std / counts).square()
    noise = noise_energy + squared_norm / counts
    shares = _shares_of_signal(differences, noise)
    eigenvalues = []
    for some_differences in batches(differences):
        whitened = (inverse_root @ some_differences @ inverse_root).double()
        eigenvalues.append(torch.linalg.eigvalsh(whitened)[:, 0])
    lowest = -torch.cat(eigenvalues).to(second.dtype)
    # In the coordinates of the pooled covariance the result is I + share * difference. No
    # eigenvalue of it may fall below 1 - 0.8.
    shares = torch.minimum(shares, 0.8 / lowest.clamp_min(1e-6))
    return differences.mul_(shares[:, None, None]).add_(pooled)


def relative_covariances(
    second: Tensor,
    expected: Tensor,
    counts: Tensor,
    std: float,
) -> Tensor:
    """Return groups' covariances ``[G, k, k]`` relative to the expected ones, shrunk towards I.

    Each is scaled first so that its mean variance is 1. It keeps the share of its difference from
    the identity that noise and sampling error do not explain (Ledoit and Wolf 2004).

    Args:
        second: the groups' second moments per row about their means ``[G, k, k]``, symmetric.
        expected: the covariance expected of each group ``[G, k, k]``.
        counts: the number of rows per group ``[G]``.
        std: the standard deviation of the noise on an off-diagonal entry of a sum; an entry on the
            diagonal has twice the variance.
    """
    size = second.shape[1]
    identity = torch.eye(size, device=second.device)
    inverse_root = inverse_square_root(expected, 1e-9)
    relative = inverse_root @ second @ inverse_root
    variances = relative.diagonal(dim1=1, dim2=2)
    mean_variance = variances.mean(1).clamp_min(1e-9)
    differences = relative / mean_variance[:, None, None] - identity
    # Whitening scales the noise of an entry by about tr(inverse_root^2) / k.
    noise_scale = inverse_root.square().sum((1, 2))
    entry_std = std * noise_scale / size / (counts * mean_variance)
    # n normal rows of covariance I have E |S - I|^2 = k (k + 1) / n.
    noise = size * (size + 1) * (entry_std.square() + 1 / counts)
    shares = _shares_of_signal(differences, noise)
    shrunk: Tensor = identity + shares[:, None, None] * differences
    return shrunk


def _shares_of_signal(differences: Tensor, noise: Tensor) -> Tensor:
    """Return :func:`_share_of_signal` of each of several matrices ``[G, k, k]``, ``[G]``."""
    return torch.stack(list(map(_share_of_signal, differences, noise)))


def _share_of_signal(difference: Tensor, noise: Tensor) -> Tensor:
    """Return the share of a noisy matrix to keep, a scalar in [0, 1].

    For x = s + noise, the a that minimises E |a x - s|^2 is

        |s|^2 / E |x|^2 = 1 - E |noise|^2 / E |x|^2.

    Args:
        difference: x ``[k, k]``.
        noise: E |noise|^2, a scalar.
    """
    squared = difference.square().sum()
    share: Tensor = ((squared - noise) / squared.clamp_min(1e-30)).clamp(0, 1)
    return share


def affordable(
    rows: float,
    noise: float,
    resolution: float,
) -> int:
    """Return the largest number of directions k in which noise hides no more than ``resolution``.

    Args:
        rows: the number of rows.
        noise: the standard deviation of the noise on an entry of a sum, in units of the squared
            clip norm.
        resolution: the largest operator norm of the noise, in units of the covariance.
    """
    # Rows are clipped at about sqrt(k), so |x x^T| is at most k and an entry's noise is
    # s = noise k / rows. A symmetric matrix of such entries has the operator norm 2 s sqrt(k)
    # (Wigner 1958). 2 noise k^(3/2) / rows = resolution is solved for k.
    if noise <= 0:
        return 10**6
    return int(math.pow(resolution * rows / (2 * noise), 2 / 3))
