"""Per-example clipping: the sum of clipped per-example gradients of any model, by two engines with one answer."""

from fedsim.privacy.clipping.engine import ENGINES, ClippedSum, EngineName, clipped_sum
from fedsim.privacy.clipping.norms import Norms

__all__ = ["ENGINES", "ClippedSum", "EngineName", "Norms", "clipped_sum"]
