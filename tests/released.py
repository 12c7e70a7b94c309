"""Coordinates as if they had been released: rows about a mean, in units of their own."""

from torch import Tensor

from fedsim.methods.coordinates import PREFIX
from fedsim.methods.messages import Tensors


def centred_at(mean: Tensor, scale: float = 1.0) -> Tensors:
    """Coordinates of no direction that has a scale of its own."""
    none = mean.new_zeros(len(mean), 0)
    parts = {"mean": mean, "basis": none, "shrink": none.T @ none, "stretch": none.T @ none, "scale": mean.new_tensor(scale)}
    return {"mean": mean} | {f"{PREFIX}{name}": value for name, value in parts.items()}
