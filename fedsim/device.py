"""Moves tensors to a device and back in few copies, and draws normal numbers.

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
"""The devices with fused kernels of torch, for Adam and for products that are added."""
Key = TypeVar("Key")


def device_of(asked: str, gpus: float) -> torch.device:
    """Return the device of an actor.

    Args:
        asked: ``cpu``, ``cuda``, or ``auto`` for CUDA if the actor has a share of a GPU.
        gpus: the actor's share of GPUs.
    """
    on_gpu = asked == "cuda" or (asked == "auto" and gpus > 0 and torch.cuda.is_available())
    if on_gpu:
        return torch.device("cuda")
    return CPU


def exact_products() -> None:
    """Make CUDA compute in full float32 with kernels that add in a fixed order.

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

    Floating-point tensors travel together as the widest of their types, which holds all their
    values; integers travel in one copy per type.
    """
    kinds: dict[tuple[torch.device, torch.dtype | None], list[Key]] = defaultdict(list)
    for name, value in tensors.items():
        if value.device.type != device.type:
            dtype = None if value.is_floating_point() else value.dtype
            kinds[value.device, dtype].append(name)
    there = dict(tensors)
    for names in kinds.values():
        values = [tensors[name] for name in names]
        widest = reduce(torch.promote_types, [value.dtype for value in values])
        flat = torch.cat([value.detach().reshape(-1).to(widest) for value in values])
        parts = torch.split(to_device(flat, device), [value.numel() for value in values])
        for name, value, part in zip(names, values, parts, strict=True):
            there[name] = part.view(value.shape).to(value.dtype)
    return there


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, row by row, on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    # A single number may have any stride and still be contiguous.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy()


def normal(shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Return standard normal draws from a CPU stream, on the device of ``like``."""
    return to_device(torch.randn(*shape, generator=stream), like.device)


def integers(below: int, shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Return uniform int64 draws in ``0 .. below - 1``, on the device of ``like``."""
    return to_device(
        torch.randint(
            below,
            tuple(shape),
            generator=stream,
        ),
        like.device,
    )
