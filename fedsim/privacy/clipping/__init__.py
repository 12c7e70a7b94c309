"""Per-example clipping: the sum of clipped per-example gradients of any model, by three engines with one answer."""

from fedsim.privacy.clipping.engine import ENGINES, ClippedSum, Norms, clipped_sum
from fedsim.privacy.clipping.statistics import OuterProduct, clipped_statistics

__all__ = ["ENGINES", "ClippedSum", "Norms", "OuterProduct", "clipped_statistics", "clipped_sum"]
