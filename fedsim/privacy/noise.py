"""Gaussian noise for the parts of one release, and a fingerprint that shows two runs drew the same."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def gaussian(
    shapes: Mapping[str, torch.Size | tuple[int, ...]],
    std: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    memory: Tensor | None = None,
) -> dict[str, Tensor]:
    """Independent N(0, ``std``^2) noise for every part, from one draw.

    The draw is made on the generator's device and then moved, so that a CPU generator gives the same noise on every
    device. A ``std`` of 0 gives zeros and leaves the generator as it was.

    Args:
        shapes: a shape a part; the parts are drawn in this order.
        std: standard deviation per coordinate (:meth:`fedsim.privacy.plan.PrivacyPlan.noise_std`).
        generator: the stream of this release, round and client (``fedsim.seeds``, purpose NOISE).
        device: where the noise is wanted.
        memory: a float32 tensor ``[n]`` on the generator's device that a draw of n coordinates goes into, in place of fresh memory.

    Returns:
        A float32 tensor a part, views of one flat tensor.

    Raises:
        ValueError: ``std`` is negative or not finite.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"the noise's standard deviation must be finite and not negative, not {std}")
    sizes = [math.prod(shape) for shape in shapes.values()]
    if std == 0:
        flat = torch.zeros(sum(sizes), device=device)
    else:
        drawn = torch.empty(sum(sizes), device=generator.device) if memory is None else memory
        flat = drawn.normal_(0, std, generator=generator).to(device)
    parts = torch.split(flat, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def fingerprint(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the tensors' bytes in the order of their sorted names: equal for two runs with the same bits."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].detach().cpu().numpy().tobytes(), crc)
    return crc
