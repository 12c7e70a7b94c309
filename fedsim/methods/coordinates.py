"""Released coordinates: rows about their mean, in units of their distance from it, and less steep
than their spectrum is.

Noise is the same in every direction, so under a steep spectrum it hides all directions but the
first. In coordinates divided by a power of a released variance less is hidden (private
preconditioning: Kamath et al. 2019, arXiv 1805.00216). Two releases: the mean; then the second
moment of the rows' directions from it, which have norm 1 at any scale, with a histogram of their
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
COORDINATE_NAMES = tuple(
    f"{PREFIX}{name}" for name in ("mean", "basis", "shrink", "stretch", "scale")
)
"""Tensors that hold the coordinates."""
MEAN_SHARE = 0.4
"""Of what both releases take of the budget."""
SPREAD_WEIGHTS = {"second": 1.0, "bins": 0.3}
MOST_DIRECTIONS = 64
"""With a scale of their own; all others share one."""
ABOVE_EDGE = 1.1
"""Directions have a scale of their own where their eigenvalue is this factor above the largest that
noise alone would have.
"""
LEAST_REST = 1e-4
"""Least share of the variance that the other directions have together."""
MOSTLY_CLIPPED = 0.95
"""Mean squared norm of rows that are clipped near their typical distance, in units of the clip,
where no bin says otherwise.
"""
POWER = 0.25
"""Coordinates are divided by this power of their variance over that of the rest: 1/2 would make all
variances equal.
"""


def coordinate_statistics(
    share: float,
    about: Callable[[Rows, Tensors], Tensor] | None = None,
    mean: Statistic | None = None,
) -> tuple[Statistic, Statistic]:
    """The two releases, for a ``share`` of the budget in units of 1 / sigma^2; :class:`Coordinates`
    reads what they leave behind.

    ``about`` takes rows to their centre, by default the mean, from what was broadcast; another
    first release ``mean`` leaves ``mean``, ``rows`` and ``square`` in ``server.tensors`` as the
    overall mean does.
    """

    def products(rows: Rows, released: Tensors) -> Products:
        if about:
            r = about(rows, released)
        else:
            r = rows.x - released["mean"]
        direction = r / r.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return {"second": OuterProduct(direction, direction)} | distance_products(r)

    spread = Statistic("spread", (1 - MEAN_SHARE) * share, SPREAD_WEIGHTS, products, receive_spread)
    return mean or overall_mean(MEAN_SHARE * share), spread


def receive_spread(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
    """The coordinates, of mean squared norm 1, from the directions whose variance stands out of the
    noise.
    """
    second = sums["second"]
    rows = server.tensors["rows"]
    dim = len(sums["second"])
    square, counts, squares = released_distances(
        sums["bins"], std["bins"], server.tensors["square"]
    )
    # two triangles carry independent noise, so their mean has half the variance; such a matrix has
    # its largest eigenvalue at the edge
    edge = 2 * std["second"] / 2**0.5 / float(rows) * dim**0.5
    seen, vectors = leading(
        (second + second.T) / 2 / rows, MOST_DIRECTIONS, max(ABOVE_EDGE * edge, 1e-9)
    )
    # an eigenvalue l is seen at l + (edge / 2)^2 / l (Benaych-Georges and Nadakuditi 2011)
    values = (seen + (seen.square() - edge**2).sqrt()) / 2
    rest = ((1 - values.sum()) / max(dim - len(values), 1)).clamp_min(LEAST_REST / dim)
    basis = steady(vectors)
    relative = (values / rest).clamp_min(1.0)
    turned = basis.T @ vectors

    def function(of: Tensor) -> Tensor:
        # of one size whatever stands out, so that shapes and bytes follow from public numbers alone
        return pad((turned * of) @ turned.T, (0, padding, 0, padding)).float()

    padding = min(MOST_DIRECTIONS, dim) - len(values)
    kept = (dim - len(values) + relative.pow(1 - 2 * POWER).sum()) * rest
    server.tensors |= {
        f"{PREFIX}mean": server.tensors["mean"],
        f"{PREFIX}basis": pad(basis, (0, padding)).float(),
        f"{PREFIX}shrink": function(relative.pow(-POWER) - 1),
        f"{PREFIX}stretch": function(relative.pow(POWER) - 1),
        f"{PREFIX}scale": (square * kept).sqrt().float(),
        f"{PREFIX}counts": counts,
        f"{PREFIX}squares": squares / square,
    }


def clipped_square(released: Tensors, radius: Tensor) -> Tensor:
    """The mean squared norm of coordinates that are clipped at ``radius``, in units of it, if their
    lengths vary as distances do.
    """
    counts = released[f"{PREFIX}counts"]
    farthest = released[f"{PREFIX}squares"] / radius.square()
    rows = counts.sum()
    middle = (farthest.clamp_max(1) + (farthest / 2).clamp_max(1)) / 2
    return torch.where(rows > 0, (counts * middle).sum() / rows.clamp_min(1e-9), MOSTLY_CLIPPED)


class Coordinates:
    """``r = (I + B shrink B^T) (x - mean) / scale`` and its inverse ``x = mean + scale (I + B
    stretch B^T) r``, B ``[d, k]``.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean = tensors[f"{PREFIX}mean"]
        self.scale = tensors[f"{PREFIX}scale"]
        self.basis, self.shrink, self.stretch = (
            tensors[f"{PREFIX}{name}"] for name in ("basis", "shrink", "stretch")
        )

    @classmethod
    def where_released(cls, tensors: Mapping[str, Tensor]) -> Coordinates | None:
        """From tensors that may hold none."""
        if COORDINATE_NAMES[0] in tensors:
            return cls(tensors)
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coordinates) and all(
            torch.equal(value, vars(other)[name]) for name, value in vars(self).items()
        )

    __hash__ = None  # type: ignore[assignment]

    def of_rows(self, x: Tensor) -> Tensor:
        """Coordinates of embeddings ``[N, d]``."""
        return self.of_centred(x - self.mean)

    def in_ball(self, x: Tensor, radius: float) -> Tensor:
        """Coordinates of embeddings ``[N, d]``, clipped to a ball of ``radius``, in units of it."""
        return in_unit_ball(self.of_rows(x) / radius)

    def of_centred(self, about: Tensor) -> Tensor:
        """Coordinates of embeddings minus their centre ``[N, d]``."""
        r = about / self.scale
        return r + r @ self.basis @ self.shrink @ self.basis.T

    def rows(self, r: Tensor) -> Tensor:
        """Embeddings at coordinates ``[N, d]``."""
        return self.mean + self.apart(r)

    def apart(self, r: Tensor) -> Tensor:
        """Embeddings at coordinates, minus their centre ``[N, d]``."""
        return self.scale * (r + r @ self.basis @ self.stretch @ self.basis.T)

    def main_axes(self, count: int) -> Tensor:
        """Directions ``[d, k]``, k at most ``count``, in which rows in coordinates vary most, each
        as long as their standard deviation.

        In units of that of the directions that share one, the longest first; those of close
        variances are a basis of their span.
        """
        # of a variance v over the others' the way back has the factor v^POWER, and coordinates keep
        # the standard deviation v^(1/2 - POWER)
        outward = torch.eye(len(self.stretch), device=self.stretch.device) + self.stretch
        values, vectors = leading(outward, count, 1 + GAP)
        if not len(values):
            return self.basis[:, :0]
        group = ties(values)
        aligned = torch.cat(
            [steady(vectors[:, group == number]) for number in range(int(group[-1]) + 1)], 1
        )
        return (
            self.basis.double() @ aligned * group_means(values, group) ** (0.5 / POWER - 1)
        ).float()
