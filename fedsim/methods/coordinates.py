"""Released coordinates: embeddings about their mean, in one unit, with a flatter spectrum.

Noise is the same in every direction. So if a few directions have most of the variance, noise hides
all others. Less is hidden in coordinates that are divided by a power of a released variance
(private preconditioning: Kamath et al. 2019, arXiv 1805.00216).

Two statistics are released. The first is the mean. The second is the second moment of the
directions from the mean to the examples, which have norm 1 at any scale, with a histogram of the
distances. All else is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import Rows, Statistic, overall_mean
from fedsim.privacy.statistics.moments import (
    Products,
    distance_products,
    in_unit_ball,
    released_distances,
)
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.privacy.statistics.spectral import GAP, group_means, leading, steady, ties

PREFIX = "coordinates."
"""The prefix of the names of a server's tensors that belong to the coordinates."""
COORDINATE_NAMES = tuple(
    f"{PREFIX}{name}" for name in ("mean", "basis", "shrink", "stretch", "scale")
)
"""The names of the tensors that define the coordinates."""
MEAN_SHARE = 0.4
"""The share of the mean in what both releases take of the budget."""
SPREAD_WEIGHTS = {"second": 1.0, "bins": 0.3}
"""The weights of the second moment and of the histogram in an example's joint norm."""
MOST_DIRECTIONS = 64
"""The most directions that have a scale of their own; all others share one scale."""
ABOVE_EDGE = 1.1
"""A direction has a scale of its own if its eigenvalue is large enough.

It must be this factor above the largest eigenvalue that noise alone would have.
"""
LEAST_REST = 1e-4
"""The least share of the variance that the other directions have together."""
MOSTLY_CLIPPED = 0.95
"""The mean squared norm of coordinates if the histogram is empty, in units of the clip.

It holds for examples that are clipped near their typical distance.
"""
POWER = 0.25
"""Coordinates are divided by this power of their variance, relative to that of the rest.

At 1/2 all variances would be equal.
"""


def coordinate_statistics(
    share: float,
    about: Callable[[Rows, Tensors], Tensor] | None = None,
    mean: Statistic | None = None,
) -> tuple[Statistic, Statistic]:
    """Return the two statistics that :class:`Coordinates` need: the mean and the spread.

    Args:
        share: their share of the budget, in units of 1 / sigma^2.
        about: (rows, broadcast) to the examples minus their centre ``[N, d]``; None: minus the
            mean.
        mean: another first statistic. It must leave ``mean``, ``rows`` and ``square`` in
            ``server.tensors`` as the overall mean does. None: the overall mean.
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


def receive_spread(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
    """Compute the coordinates from the noisy sums, and store them in ``server.tensors``.

    Coordinates have mean squared norm 1. Directions whose variance stands out of the noise get a
    scale of their own.

    Args:
        server: has ``mean``, ``rows`` and ``square`` from the first release.
        sums: the second moment ``second`` ``[d, d]`` and the histogram ``bins`` of distances.
        std: the standard deviation of the noise of each sum.
    """
    rows = server.tensors["rows"]
    dim = len(sums["second"])
    square, counts, squares = released_distances(
        sums["bins"],
        std["bins"],
        server.tensors["square"],
    )
    values, vectors = _standing_out(
        sums["second"],
        std["second"],
        rows,
    )
    rest = ((1 - values.sum()) / max(dim - len(values), 1)).clamp_min(LEAST_REST / dim)
    basis = steady(vectors)
    relative = (values / rest).clamp_min(1.0)
    turned = basis.T @ vectors
    # Tensors have the same size whatever stands out, so that shapes and bytes follow from public
    # numbers alone.
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


def _standing_out(second: Tensor, std: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues ``[k]`` and eigenvectors ``[d, k]`` that noise does not explain.

    An eigenvalue l appears at

        l + (edge / 2)^2 / l

    (Benaych-Georges and Nadakuditi 2011), which is undone here. ``edge`` is the largest eigenvalue
    of the noise alone.

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
    """
    counts = released[f"{PREFIX}counts"]
    farthest = released[f"{PREFIX}squares"] / radius.square()
    rows = counts.sum()
    middle = (farthest.clamp_max(1) + (farthest / 2).clamp_max(1)) / 2
    mean = (counts * middle).sum() / rows.clamp_min(1e-9)
    return torch.where(rows > 0, mean, MOSTLY_CLIPPED)


class Coordinates:
    """The map from embeddings to coordinates, and its inverse.

    For a basis B ``[d, k]`` they are

        r = (I + B shrink B^T) (x - mean) / scale    and    x = mean + scale (I + B stretch B^T) r.

    Args:
        tensors: tensors by :data:`COORDINATE_NAMES`.
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

    __hash__ = None  # type: ignore[assignment]

    def of_rows(self, x: Tensor) -> Tensor:
        """Return the coordinates ``[N, d]`` of embeddings ``[N, d]``."""
        return self.of_centred(x - self.mean)

    def in_ball(self, x: Tensor, radius: float) -> Tensor:
        """Return coordinates ``[N, d]`` clipped to a ball, in units of its ``radius``."""
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

        Each is as long as the standard deviation along it, in units of that of the directions that
        share a scale. The longest comes first. Directions of close variances are a basis of their
        span.
        """
        # For a variance v relative to the others' the way back has the factor v^POWER, and
        # coordinates keep the standard deviation v^(1/2 - POWER).
        outward = torch.eye(len(self.stretch), device=self.stretch.device) + self.stretch
        values, vectors = leading(outward, count, 1 + GAP)
        if not len(values):
            return self.basis[:, :0]
        group = ties(values)
        spans = [steady(vectors[:, group == number]) for number in range(int(group[-1]) + 1)]
        axes = self.basis.double() @ torch.cat(spans, 1)
        lengths = group_means(values, group) ** (0.5 / POWER - 1)
        return (axes * lengths).float()
