"""Where tensors live: onto a device and back in few copies, and normal draws that are the same on
every device.

Random numbers are drawn by the generators of the CPU and then moved, so that a cell samples the
same rows and gets the same noise wherever it trains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
FUSED = ("cpu", "cuda")
"""Devices with torch's fused kernels: Adam of many tensors, and products that are added on."""
Key = TypeVar("Key")


def device_of(asked: str, gpus: float) -> torch.device:
    """The device of an actor that holds a share of ``gpus``: ``auto`` takes CUDA where there is a
    share and CUDA.
    """
    on_gpu = asked == "cuda" or (asked == "auto" and gpus > 0 and torch.cuda.is_available())
    if on_gpu:
        return torch.device("cuda")
    return CPU


def exact_products() -> None:
    """On CUDA: products in whole float32, and kernels that add up in one order, so that a cell
    gives the same row again.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``; from pinned memory CUDA copies while the host continues."""
    if device.type == "cuda" and value.device == CPU:
        return value.contiguous().pin_memory().to(device, non_blocking=True)
    return value.to(device)


def moved(tensors: Mapping[Key, Tensor], device: torch.device) -> dict[Key, Tensor]:
    """The tensors on ``device``; those that are elsewhere travel in one copy, integers in one a
    dtype, so that the host hardly waits.

    Floating-point numbers travel as the widest of them, which holds the others' values.
    """
    kinds: dict[tuple[torch.device, torch.dtype | None], list[Key]] = {}
    for name, value in tensors.items():
        if value.device.type != device.type:
            kinds.setdefault(
                (value.device, None if value.is_floating_point() else value.dtype), []
            ).append(name)
    there: dict[Key, Tensor] = {}
    for names in kinds.values():
        widest = reduce(torch.promote_types, (tensors[name].dtype for name in names))
        flat = torch.cat([tensors[name].detach().reshape(-1).to(widest) for name in names])
        parts = torch.split(to_device(flat, device), [tensors[name].numel() for name in names])
        there |= {
            name: part.view(tensors[name].shape).to(tensors[name].dtype)
            for name, part in zip(names, parts, strict=True)
        }
    return {name: there.get(name, value) for name, value in tensors.items()}


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """A tensor's memory, row by row, on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    # a single number may have any stride and still be contiguous
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy()


def normal(shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal draws from a stream of the CPU, on the device of ``like``."""
    return to_device(torch.randn(*shape, generator=stream), like.device)


def integers(below: int, shape: Sequence[int], stream: torch.Generator, like: Tensor) -> Tensor:
    """Uniform int64 draws in ``0 .. below - 1`` from a stream of the CPU, on the device of
    ``like``.
    """
    return to_device(torch.randint(below, tuple(shape), generator=stream), like.device)
