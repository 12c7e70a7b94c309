"""Per-example clipping: the sum of clipped per-example gradients of any model, by three engines with one answer."""

from fedsim.privacy.clipping.engine import ENGINES, ClippedSum, Norms, clipped_sum
from fedsim.privacy.clipping.independence import check_per_example
from fedsim.privacy.clipping.statistics import OuterProduct, clipped_statistics

__all__ = ["ENGINES", "ClippedSum", "Norms", "OuterProduct", "check_per_example", "clipped_statistics", "clipped_sum"]
