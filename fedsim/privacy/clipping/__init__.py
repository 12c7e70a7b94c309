"""Per-example clipping: the sum of clipped per-example gradients of any model, by three engines with one answer."""

from fedsim.privacy.clipping.engine import ENGINES, ClippedSum, EngineName, clipped_sum
from fedsim.privacy.clipping.independence import check_per_example
from fedsim.privacy.clipping.norms import Norms

__all__ = ["ENGINES", "ClippedSum", "EngineName", "Norms", "check_per_example", "clipped_sum"]
