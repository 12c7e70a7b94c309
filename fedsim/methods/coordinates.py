"""Released coordinates: embeddings that are centred, rescaled, and divided by part of their spread.

Noise has the same size in every direction. So if a few directions have most of the variance, noise
hides all other directions. It hides less if each direction is divided by a power of its released
variance (private preconditioning: Kamath et al. 2019, arXiv 1805.00216).

Two statistics are released. The first is the mean of the embeddings. The second has two parts: the
second moment of the unit vectors that point from the mean to the examples, and a histogram of the
examples' distances from the mean. All else is computed from these releases alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows, Statistic, overall_mean
from fedsim.privacy.noise import Deviations
from fedsim.privacy.statistics.moments import (
    distance_products,
    in_unit_ball,
    released_distances,
)
from fedsim.privacy.statistics.outer_products import OuterProduct, Products
from fedsim.privacy.statistics.spectral import GAP, group_means, leading, steady, ties

PREFIX = "coordinates."
"""The prefix of the names of a server's tensors that belong to the coordinates."""
COORDINATE_NAMES = tuple(
    f"{PREFIX}{name}" for name in ("mean", "basis", "shrink", "stretch", "scale")
)
"""The names of the tensors that define the coordinates."""
MEAN_SHARE = 0.4
"""The mean's share of the budget of both releases; the second release has the rest."""
SPREAD_WEIGHTS = {"second": 1.0, "bins": 0.3}
"""The weights of the second moment and of the histogram in an example's joint norm."""
MOST_DIRECTIONS = 64
"""The largest number of directions with a scale of their own; all others share one scale."""
ABOVE_EDGE = 1.1
"""How large an eigenvalue must be so that its direction has a scale of its own.

It must exceed this number times the largest eigenvalue that noise alone would have.
"""
LEAST_REST = 1e-4
"""A bound on the share of the variance of each other direction: this number divided by d.

Noise can make the estimated share smaller, or negative.
"""
MOSTLY_CLIPPED = 0.95
"""The mean squared norm of clipped coordinates, assumed if noise hides the whole histogram.

It is in units of the squared clip norm, and is right for a clip norm near the typical distance.
"""
POWER = 0.25
"""A direction with a scale of its own is divided by its relative variance to this power.

The variance is relative to that of the directions that share a scale. The power 1/2 would make all
variances equal.
"""


def coordinate_statistics(
    share: float,
    about: Callable[[Rows, Tensors], Tensor] | None = None,
    mean: Statistic | None = None,
) -> tuple[Statistic, Statistic]:
    """Return the two statistics that :class:`Coordinates` need: the mean and the spread.

    The spread is the second moment of directions with the histogram of distances.

    Args:
        share: their share of the budget, in units of 1 / sigma^2.
        about: a function of (rows, broadcast) that returns the examples minus their centre
            ``[N, d]``. With None the centre is the released mean.
        mean: the first statistic, if it is not to be the overall mean. Like the overall mean, it
            must store ``mean``, ``rows`` and ``square`` in ``server.tensors``.
    """

    def products(rows: Rows, released: Tensors) -> Products:
        if about:
            centred = about(rows, released)
        else:
            centred = rows.x - released["mean"]
        direction = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return {"second": OuterProduct(direction, direction)} | distance_products(centred)

    spread = Statistic(
        "spread",
        (1 - MEAN_SHARE) * share,
        SPREAD_WEIGHTS,
        products,
        receive_spread,
    )
    return mean or overall_mean(MEAN_SHARE * share), spread


def receive_spread(server: Server, sums: Tensors, std: Deviations) -> None:
    """Compute the coordinates from the noisy sums, and store them in ``server.tensors``.

    They are scaled to a mean squared norm of 1. Directions whose variance stands out of the noise
    get a scale of their own.

    Args:
        server: the server, whose tensors hold ``mean``, ``rows`` and ``square`` of the first
            release.
        sums: the noisy sums: ``second`` ``[d, d]`` over the outer products of directions, and
            ``bins``, the histogram of distances.
        std: the standard deviation of the noise of each sum.
    """
    rows = server.tensors["rows"]
    dim = len(sums["second"])
    square, counts, squares = released_distances(
        sums["bins"],
        std["bins"],
        server.tensors["square"],
    )
    values, vectors = _spectrum_above_noise(
        sums["second"],
        std["second"],
        rows,
    )
    rest = ((1 - values.sum()) / max(dim - len(values), 1)).clamp_min(LEAST_REST / dim)
    basis = steady(vectors)
    relative = (values / rest).clamp_min(1.0)
    turned = basis.T @ vectors
    # The number of directions that stand out depends on the releases. The tensors are padded to one
    # size, so that shapes and bytes follow from public numbers alone.
    padding = min(MOST_DIRECTIONS, dim) - len(values)

    def in_basis(eigenvalues: Tensor) -> Tensor:
        return pad((turned * eigenvalues) @ turned.T, (0, padding, 0, padding)).float()

    total = (dim - len(values) + relative.pow(1 - 2 * POWER).sum()) * rest
    server.tensors |= {
        f"{PREFIX}mean": server.tensors["mean"],
        f"{PREFIX}basis": pad(basis, (0, padding)).float(),
        f"{PREFIX}shrink": in_basis(relative.pow(-POWER) - 1),
        f"{PREFIX}stretch": in_basis(relative.pow(POWER) - 1),
        f"{PREFIX}scale": (square * total).sqrt().float(),
        f"{PREFIX}counts": counts,
        f"{PREFIX}squares": squares / square,
    }


def _spectrum_above_noise(second: Tensor, std: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues ``[k]`` and eigenvectors ``[d, k]`` that noise does not explain.

    Noise moves an eigenvalue l to

        l + (edge / 2)^2 / l

    (Benaych-Georges and Nadakuditi 2011), where ``edge`` is the largest eigenvalue of the noise
    alone. The eigenvalues that are returned are corrected for this.

    Args:
        second: the noisy sum of second moments ``[d, d]``.
        std: the standard deviation of its noise.
        rows: the noisy number of examples.
    """
    # Both triangles carry independent noise, so their mean has half the variance.
    edge = 2 * std / 2**0.5 / float(rows) * len(second) ** 0.5
    threshold = max(ABOVE_EDGE * edge, 1e-9)
    symmetric = (second + second.T) / 2 / rows
    seen, vectors = leading(symmetric, MOST_DIRECTIONS, threshold)
    return (seen + (seen.square() - edge**2).sqrt()) / 2, vectors


def clipped_square(released: Tensors, radius: Tensor) -> Tensor:
    """Return the mean squared norm of coordinates that are clipped at ``radius``.

    It is in units of the squared radius. The lengths of coordinates are assumed to vary as the
    released distances do.

    Args:
        released: the server's tensors.
        radius: the clip norm.
    """
    counts = released[f"{PREFIX}counts"]
    farthest = released[f"{PREFIX}squares"] / radius.square()
    rows = counts.sum()
    # The squared distances of a bin lie between half its largest one and its largest one.
    middle = (farthest.clamp_max(1) + (farthest / 2).clamp_max(1)) / 2
    mean = (counts * middle).sum() / rows.clamp_min(1e-9)
    return torch.where(rows > 0, mean, MOSTLY_CLIPPED)


class Coordinates:
    """The map from embeddings to coordinates, and its inverse.

    With a basis B ``[d, k]`` of the directions that have scales of their own, matrices ``shrink``
    and ``stretch`` ``[k, k]`` and a number ``scale``, an embedding x has the coordinates r:

        r = (I + B shrink B^T) (x - mean) / scale    and    x = mean + scale (I + B stretch B^T) r.

    Args:
        tensors: tensors by name, among them those of :data:`COORDINATE_NAMES`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean, self.basis, self.shrink, self.stretch, self.scale = (
            tensors[name] for name in COORDINATE_NAMES
        )

    @classmethod
    def where_released(cls, tensors: Mapping[str, Tensor]) -> Coordinates | None:
        """Return the coordinates if ``tensors`` contains any, else None."""
        if COORDINATE_NAMES[0] in tensors:
            return cls(tensors)
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coordinates) and all(
            torch.equal(value, vars(other)[name]) for name, value in vars(self).items()
        )

    def of_rows(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[N, d]`` of embeddings ``[N, d]``."""
        return self.of_centred(x - self.mean)

    def in_ball(self, x: Tensor, radius: float) -> Tensor:
        """Return the coordinates ``[N, d]`` of embeddings ``[N, d]``, clipped to a ball.

        They are in units of the ball's ``radius``, so their norm is at most 1.
        """
        return in_unit_ball(self.of_rows(x) / radius)

    def of_centred(self, about: Tensor) -> Tensor:
        """Return the coordinates ``[N, d]`` of embeddings from which their centre is subtracted."""
        r = about / self.scale
        return r + r @ self.basis @ self.shrink @ self.basis.T

    def rows(self, r: Tensor) -> Tensor:
        """Return the embeddings ``[N, d]`` at coordinates ``[N, d]``."""
        return self.mean + self.apart(r)

    def apart(self, r: Tensor) -> Tensor:
        """Return the embeddings at coordinates ``[N, d]``, minus their centre."""
        return self.scale * (r + r @ self.basis @ self.stretch @ self.basis.T)

    def main_axes(self, count: int) -> Tensor:
        """Return the directions ``[d, k]`` in which coordinates vary most, k at most ``count``.

        The longest direction comes first. Its length is the standard deviation of the coordinates
        along it, relative to that of the directions that share a scale. If variances are too close
        to be told apart, a fixed basis of the span of their directions is returned.
        """
        # A direction of relative variance v has the eigenvalue v^POWER in ``outward``. Its
        # coordinates have the relative standard deviation v^(1/2 - POWER).
        outward = torch.eye(len(self.stretch), device=self.stretch.device) + self.stretch
        values, vectors = leading(outward, count, 1 + GAP)
        if not len(values):
            return self.basis[:, :0]
        group = ties(values)
        spans = [steady(vectors[:, group == number]) for number in range(int(group[-1]) + 1)]
        axes = self.basis.double() @ torch.cat(spans, 1)
        lengths = group_means(values, group) ** (0.5 / POWER - 1)
        return (axes * lengths).float()
