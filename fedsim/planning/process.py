"""The settings of a process that trains: threads, floating point, memory."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fedsim.device import CPU, exact_products

KEPT_MEMORY = 2**29
"""Bytes of freed memory that a process keeps for its next step."""
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
"""Of glibc's malloc.h."""


def settle(cpus: float, device: torch.device = CPU) -> None:
    """Make a process ready for training on its share of the machine: so many threads, and memory that is kept for the next step."""
    reset_torch()
    if device != CPU:
        exact_products()
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    # numbers below 1e-38, as saturated layers leave them, take some processors a hundred times as long as 0
    torch.set_flush_denormal(True)
    threadpool_limits(threads)
    # glibc gives large blocks back at every step, and the next step pays for every page anew: up to a third of its time.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)


def reset_torch() -> None:
    """Torch's default dtype and device, and gradients, which plug-ins change."""
    torch.set_default_dtype(torch.float32)
    if torch.empty(0).device != CPU:  # torch.get_default_device fails in older versions once the default was taken back
        torch.set_default_device(None)
    torch.set_grad_enabled(True)


@contextmanager
def plug_in_code() -> Iterator[None]:
    """Runs a plug-in's code in the driver: afterwards torch's settings, numpy's error handling and the working folder are as before."""
    with chdir("."), np.errstate():
        try:
            yield
        finally:
            reset_torch()


def limit_memory(bytes_: float) -> None:
    """Let this process take so many bytes more than it has now; 0: any number. What it asks for beyond is refused: a MemoryError.

    Shared memory, in which Ray keeps data sets, does not count.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    lines = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + int(bytes_) if bytes_ else hard, hard))
