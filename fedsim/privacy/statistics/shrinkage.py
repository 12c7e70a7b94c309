"""Estimates that know how noisy they are: eigenvalues under symmetric noise, means of many groups,
covariances of many classes.

All of it is post-processing of released values and their public noise levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedsim.privacy.statistics.spectral import group_means, spectral_function, ties

GROWTH = 1.35
"""Directions share an estimate of their signal in groups that grow by this factor: 1, 1, 2, 2, 3,
... of them.
"""
STEPS = 8
"""Of the fixed point that a signal's variance is."""


def free_eigenvalues(values: Tensor, noise: float) -> Tensor:
    """What a covariance has, on average, along the eigenvectors of itself plus symmetric Gaussian
    noise: ``[d]``, never rising.

    The rotation-invariant estimate ``y - 2 tau^2 h(y)`` of descending ``values`` y ``[d]``, where h
    is the Hilbert transform of the spectrum that is seen and tau the radius parameter of the
    noise's semicircle (Bun, Bouchaud and Potters 2017, arXiv 1610.08104, section 6.3); it is the
    best in Frobenius norm without any assumption on the eigenvectors. Rounded to a falling order by
    isotonic regression. ``noise``: standard deviation off the diagonal.
    """
    if noise <= 0:
        return values
    from sklearn.isotonic import IsotonicRegression

    # for M = A + noise with a semicircle of tau^2, the resolvents satisfy g_M(z) = g_A(z - tau^2
    # g_M(z)) (Pastur 1972); the mean of A along
    # eigenvectors of M at y is Im tr(A G_M) / Im tr(G_M) = y - 2 tau^2 Re g_M(y), and Re g_M = h.
    # noise of variance s^2 off the diagonal has tau^2 = d s^2; h(y) = mean_j 1 / (y - y_j),
    # smoothed at s
    apart = values[:, None] - values
    hilbert = (apart / (apart.square() + noise**2)).mean(1)
    found = (values - 2 * noise**2 * len(values) * hilbert).cpu().numpy()
    falling = IsotonicRegression(increasing=False).fit_transform(range(len(found)), found)
    return torch.from_numpy(falling).to(values)


def shrunk_along(means: Tensor, noise: Tensor, values: Tensor) -> Tensor:
    """Class means ``[C, d]``, in directions of falling variance, shrunk to their common centre: the
    posterior mean under a normal prior.

    The prior's variance is estimated from neighbouring directions together, every class with the
    weight that its noise, of variance ``[C]`` in every direction, leaves it; a rare class is told
    by what the frequent ones say of a direction (empirical Bayes, as Morris 1983). ``values``
    ``[d]`` are the directions' variances; those that cannot be told apart share what is estimated,
    however they are turned.
    """
    group = ties(values)
    near = _neighbours(values)
    noise = noise[:, None]

    def shared(of: Tensor, weight: Tensor) -> Tensor:
        """Weighted mean over classes and neighbouring directions, ``[d]``."""
        sums = [
            torch.zeros_like(values).index_add(0, near, group_means((weight * each).sum(0), group))
            for each in (of, torch.ones_like(of))
        ]
        return group_means((sums[0] / sums[1])[near], group)

    signal = shared(
        (means - means.mean(0)).square() * (len(means) / max(len(means) - 1, 1)) - noise,
        torch.ones_like(means),
    ).clamp_min(1e-12)
    for _ in range(STEPS):
        # a class's variance v = signal + noise about the centre is v (1 - (1 / v) / sum(1 / v)),
        # for its own part of the centre; its square
        # says of the signal what has variance 2 v^2, hence the weight 1 / v^2: a step of Fisher
        # scoring
        weight = 1 / (signal + noise)
        centre = (weight * means).sum(0) / weight.sum(0)
        left = (1 - weight / weight.sum(0)).clamp_min(0.05)
        signal = shared((means - centre).square() / left - noise, weight.square()).clamp_min(1e-12)
    # means are N(theta_c, noise), theta_c are N(centre, signal), and the centre N(0, of_centre),
    # estimated with variance error:
    # the posterior mean of a normal is the estimate times prior variance / (prior variance +
    # error), for the centre and then about it
    weight = 1 / (signal + noise)
    centre = (weight * means).sum(0) / weight.sum(0)
    error = 1 / weight.sum(0)
    of_centre = shared((centre.square() - error)[None], torch.ones_like(centre)[None]).clamp_min(0)
    kept: Tensor = centre * of_centre / (of_centre + error)
    return kept + signal / (signal + noise) * (means - kept)


def _neighbours(values: Tensor) -> Tensor:
    """The number of the group of neighbouring directions that each of them, in order, is in."""
    found = list[int]()
    width = 1.0
    while len(found) < len(values):
        found += [int(found[-1]) + 1 if found else 0] * round(width)
        width *= GROWTH
    return torch.tensor(found[: len(values)], device=values.device)


def james_stein(found: Tensor, noise: Tensor, rank: int | None = None, steps: int = 0) -> Tensor:
    """Groups' estimates ``[G, k]`` shrunk to 0 by their noise's variance ``[G]`` against the
    signal's, which all groups estimate together.

    Nothing is left where nothing stands out of the noise, which is independent in every direction
    of a space of ``rank`` dimensions (default: k). With ``steps`` of a fixed point, for float64, a
    group counts by what its square says of the signal, with a variance of (signal + noise)^2; with
    none by 1 / noise: cautious, for groups of little noise then speak for all.
    """
    noise = noise.clamp_min(1e-30)
    if rank is None:
        square = found.square().mean(1)
    else:
        square = found.square().sum(1) / rank
    if steps:
        weight = torch.ones_like(noise)
    else:
        weight = 1 / noise
    for _ in range(steps + 1):
        # a group's mean square has the mean signal + noise and, under normals of rank k, the
        # variance 2 (signal + noise)^2 / k: the
        # precision-weighted mean of square - noise estimates the signal
        signal = ((weight * (square - noise)).sum() / weight.sum()).clamp_min(0)
        weight = (signal + noise).square().reciprocal()
    return found * (signal / (signal + noise))[:, None]


def of_two(
    first: Tensor, noise: Tensor, second: Tensor, second_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Two independent estimates of the same ``[G, ...]``, weighted by their precision, and the
    variance of the result ``[G]``.

    ``noise`` and ``second_noise`` ``[G]`` are their variances; where both have none they count
    alike.
    """
    # a x + (1 - a) y has the variance a^2 v + (1 - a)^2 w, which is least at a = (1 / v) / (1 / v +
    # 1 / w)
    precision = 1 / noise.clamp_min(1e-30)
    other = 1 / second_noise.clamp_min(1e-30)
    kept = (precision / (precision + other)).view(-1, *[1] * (first.dim() - 1))
    return kept * first + (1 - kept) * second, 1 / (precision + other)


def pooled_and_own(second: Tensor, means: Tensor, counts: Tensor, std: float) -> Tensor:
    """Covariances of all classes ``[C, k, k]``: the class's own, shrunk to the pooled one, and that
    to a multiple of the identity.

    Each keeps the share that its squared distance to the target has beyond the noise's and, a
    class's, beyond that of sampling (Ledoit and Wolf 2004), and no more than leaves it a fifth of
    the pooled variance in every direction. Second moments ``[C, k, k]`` are symmetric, per row of
    the class, and about means ``[C, k]``; ``std`` is of the noise on a sum's entry off the
    diagonal, after its triangles were averaged.
    """
    size = second.shape[1]
    entries = (
        size * (size - 1) + 2 * size
    )  # a diagonal entry, which has no second triangle, has twice the variance
    own = second - means.unsqueeze(2) * means.unsqueeze(1)
    pooled = ((counts / counts.sum())[:, None, None] * own).sum(0)
    round_ = pooled.trace() / size * torch.eye(size, device=pooled.device)
    pooled = round_ + _beyond(pooled - round_, entries * (std / counts.sum()).square()) * (
        pooled - round_
    )
    values, vectors = torch.linalg.eigh(pooled.double())
    values = values.clamp_min(0.1 * float(values.mean().clamp_min(1e-9)))
    pooled = ((vectors * values) @ vectors.T).to(second.dtype)
    white = ((vectors * values.rsqrt()) @ vectors.T).to(second.dtype)
    apart = own - pooled
    # n normal rows of covariance P have E |S - P|^2 = (tr(P)^2 + |P|^2) / n
    noise = (
        entries * (std / counts).square()
        + (pooled.trace().square() + pooled.square().sum()) / counts
    )
    kept = torch.stack(
        [_beyond(difference, energy) for difference, energy in zip(apart, noise, strict=True)]
    )
    lowest = -torch.linalg.eigvalsh((white @ apart @ white).double())[:, 0].to(second.dtype)
    # in the pooled one's coordinates the result is I + kept * apart, no eigenvalue of which falls
    # below 1 - 0.8
    kept = torch.minimum(kept, 0.8 / lowest.clamp_min(1e-6))
    covariances: Tensor = pooled + kept[:, None, None] * apart
    return covariances


def relative_covariances(second: Tensor, expected: Tensor, counts: Tensor, std: float) -> Tensor:
    """Groups' covariances ``[G, k, k]`` relative to what is expected of each, of mean variance 1,
    shrunk to the identity.

    Each keeps the share that its squared distance to it has beyond the noise's and beyond that of
    sampling (Ledoit and Wolf 2004). Second moments ``[G, k, k]`` are about the groups' means,
    symmetric, per row of the group; ``std`` is of the noise on a sum's entry off the diagonal; on
    it, it has twice the variance.
    """
    size = second.shape[1]
    one = torch.eye(size, device=second.device)
    white = spectral_function(expected, lambda values: values.clamp_min(1e-9).rsqrt())
    relative = white @ second @ white
    unit = relative.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-9)
    apart = relative / unit[:, None, None] - one
    # whitening scales the noise of an entry by about tr(white^2) / k; n normal rows of covariance I
    # have E |S - I|^2 = k (k + 1) / n
    drowned = std * white.square().sum((1, 2)) / size / (counts * unit)
    noise = size * (size + 1) * (drowned.square() + 1 / counts)
    kept = torch.stack([_beyond(each, energy) for each, energy in zip(apart, noise, strict=True)])
    covariances: Tensor = one + kept[:, None, None] * apart
    return covariances


def _beyond(apart: Tensor, noise: Tensor) -> Tensor:
    # of x = s + noise, the a that minimises E |a x - s|^2 is |s|^2 / E |x|^2 = 1 - E |noise|^2 / E
    # |x|^2
    squared = apart.square().sum()
    kept: Tensor = ((squared - noise) / squared.clamp_min(1e-30)).clamp(0, 1)
    return kept


def affordable(rows: float, noise: float, resolution: float) -> int:
    """The most directions k in which a covariance of unit size, of vectors clipped at about
    sqrt(k), is seen within ``resolution``.

    The noise of a second moment of k directions has operator norm ``2 noise k sqrt(k) / rows``.
    """
    # clipped at sqrt(k), |x x^T| is at most k, so an entry's noise is s = noise k / rows, and a
    # symmetric matrix of such entries has the
    # operator norm 2 s sqrt(k) (Wigner 1958); 2 noise k^(3/2) / rows = resolution is solved for k
    if noise <= 0:
        return 10**6
    return int(math.pow(resolution * rows / (2 * noise), 2 / 3))
