"""Chooses devices, moves tensors between them in few copies, and draws random numbers.

Random numbers are drawn on the CPU and then moved, so that a cell samples the same rows and gets
the same noise on every device.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
FUSED = ("cpu", "cuda")
"""The types of devices for which torch has fused kernels: Adam, and a product plus a sum."""
Key = TypeVar("Key")


def device_of(asked: str, gpus: float) -> torch.device:
    """Return the device of an actor.

    Args:
        asked: ``cpu``, ``cuda``, or ``auto``, which is CUDA if the actor has a share of a GPU and
            CUDA is available.
        gpus: the actor's share of GPUs.
    """
    on_gpu = asked == "cuda" or (asked == "auto" and gpus > 0 and torch.cuda.is_available())
    if on_gpu:
        return torch.device("cuda")
    return CPU


def exact_products() -> None:
    """Make CUDA compute in full float32, in a fixed order of sums where torch has such kernels.

    A cell then gives the same results again.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on ``device``; CUDA copies from pinned memory while the host continues."""
    if device.type == "cuda" and value.device == CPU:
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)


def moved(tensors: Mapping[Key, Tensor], device: torch.device) -> dict[Key, Tensor]:
    """Return tensors on ``device``, moved in few copies so that the host hardly waits.

    Floating-point tensors travel together in the smallest type that holds all their values. Other
    tensors travel in one copy per type. Moved tensors have no gradient and may share memory.
    """
    groups: dict[tuple[torch.device, torch.dtype | None], list[Key]] = defaultdict(list)
    for name, value in tensors.items():
        if value.device.type != device.type:
            dtype = None if value.is_floating_point() else value.dtype
            groups[value.device, dtype].append(name)
    result = dict(tensors)
    for names in groups.values():
        values = [tensors[name] for name in names]
        widest = reduce(torch.promote_types, [value.dtype for value in values])
        flat = torch.cat([value.detach().reshape(-1).to(widest) for value in values])
        parts = torch.split(to_device(flat, device), [value.numel() for value in values])
        for name, value, part in zip(names, values, parts, strict=True):
            result[name] = part.view(value.shape).to(value.dtype)
    return result


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, row by row, on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    # One number is contiguous with any stride, but a view as bytes needs the stride 1.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy()


def normal(shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Return standard normal float32 draws from a CPU stream, on the device of ``like``."""
    drawn = torch.randn(*shape, generator=stream)
    return to_device(drawn, like.device)


def integers(below: int, shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Return uniform int64 draws in ``0 .. below - 1``, on the device of ``like``."""
    drawn = torch.randint(below, tuple(shape), generator=stream)
    return to_device(drawn, like.device)
