"""DP prototypes: one noisy mean a class; a row is of the class of the nearest one; no generator.

DPPL-Mean of the paper: clip the rows, release every class's mean by a Gaussian mechanism, classify by the nearest prototype. Different
here: rows are taken in released coordinates, so that what is clipped and noised is small; counts are released with the sums, where the
paper takes them for known; what noise adds to a prototype's length is taken off; and neighbouring features are not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from fedsim.methods import (
    Classifier,
    Coordinates,
    LinearClassifier,
    OneShot,
    OneShotParams,
    Rows,
    Server,
    Statistic,
    Tensors,
    coordinate_statistics,
    moments,
    register,
)

PROTOTYPE_WEIGHTS = {"sums": 1.0, "counts": 0.15}
LEAST_SIGNAL = 0.05
"""Share of a squared length that is taken for signal at least, however large the noise."""


class DPPrototypesParams(OneShotParams):
    """Parameters of DP prototypes.

    Attributes:
        coordinates_share: share of the budget (in 1 / sigma^2) that the released coordinates take (:mod:`fedsim.methods.coordinates`).
        radius: of the ball to which rows are clipped, in units of their typical distance from the mean.
    """

    coordinates_share: float = Field(0.16, gt=0, lt=1)
    radius: float = Field(0.7, gt=0)


@register("dp-prototypes")
class DPPrototypes(OneShot):
    """Coordinates, then class sums and counts of the rows in them by one Gaussian mechanism; the prototypes are post-processing."""

    source = "DPPL-Mean: Wahdany et al. 2024, arXiv 2406.08039"
    Params = DPPrototypesParams

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then every class's sum and count."""
        share = self.params.coordinates_share
        last = Statistic("prototypes", 1 - share, PROTOTYPE_WEIGHTS, self.class_products, self.receive_prototypes)
        return (*coordinate_statistics(share), last)

    def class_products(self, rows: Rows, broadcast: Tensors) -> moments.Products:
        """Rows of norm at most 1, and a one, beside the class."""
        clipped = Coordinates(broadcast).in_ball(rows.x, self.params.radius)
        found = moments.class_mean_products(clipped, rows.y, self.task.classes)
        return {"sums": found["class_sums"], "counts": found["class_counts"]}

    def receive_prototypes(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Class means at unit length; what noise adds to a length is taken off first, or a rare class would seem far from every row."""
        counts = moments.counts_above_noise(sums["counts"], std["counts"])
        means = sums["sums"] / counts
        squared = means.square().sum(1, keepdim=True)
        without_noise = squared - self.dim * (std["sums"] / counts).square()
        server.tensors["prototypes"] = means / without_noise.maximum(LEAST_SIGNAL * squared).sqrt().clamp_min(1e-12)

    def classifier(self, server: Server) -> Classifier:
        """By the angle about the mean, which for a row is a matter of its product with each prototype."""
        # the product of two rows of coordinates is that of one of them with the other's embedding, taken to coordinates once more
        weight = Coordinates(server.tensors).of_centred(server.tensors["prototypes"])
        return LinearClassifier(weight, -weight @ server.tensors["mean"])
