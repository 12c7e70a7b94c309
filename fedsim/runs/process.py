"""Sets up a process that trains: its threads, memory, torch settings and working folder."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch
from threadpoolctl import threadpool_limits

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, device_of, exact_products
from fedsim.grid.models import Device
from fedsim.runs.prepare import Need

KEPT_MEMORY = 2**29
"""The bytes of freed memory that a process keeps for the next step of a job."""
_LIBC = ctypes.CDLL(None)
"""The C library of this process; only glibc has ``mallopt`` and ``malloc_trim``."""
_M_MMAP_MAX = -4
"""The option of glibc's ``mallopt`` for the largest number of blocks outside the heap."""
_M_TRIM_THRESHOLD = -1
"""The option of glibc's ``mallopt`` for the most freed bytes that stay at the heap's end."""


def settle(cpus: float, device: torch.device = CPU) -> None:
    """Make this process ready for training on its share of the machine.

    Plug-ins may have changed torch's defaults, so all of them are set again.

    Args:
        cpus: the CPUs of this process; each computation uses as many threads, at least one.
        device: the device on which the process computes.
    """
    torch.set_default_dtype(torch.float32)
    # The device of a new tensor is read, because torch.get_default_device of older versions fails
    # after the default device was reset.
    if torch.empty(0).device != CPU:
        torch.set_default_device(None)
    torch.set_grad_enabled(True)
    if device != CPU:
        exact_products()
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    # Saturated layers leave numbers below 1e-38. Some processors compute with them a hundred times
    # as slowly as with 0.
    torch.set_flush_denormal(True)
    threadpool_limits(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default glibc gives large blocks back to the system at every step. The next step then gets
    every page anew, which takes up to a third of its time.
    """
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT_MEMORY)


def give_back_freed_memory() -> None:
    """Let glibc give all freed memory back to the system, so that other processes can use it.

    Otherwise a worker without a job would keep the memory that its last job freed: up to a GiB if
    there are many classes.
    """
    malloc_trim = getattr(_LIBC, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Process:
    """A process that runs one job after another on the CPUs and GPUs of one actor.

    Args:
        need: the CPUs and GPUs of one actor.
        device: the device that the grid asks for.

    Attributes:
        folder: the working folder at the start; a job may change it.
        latest: the key and the object of the data set that was used last; None before the first.
    """

    def __init__(self, need: Need, device: Device) -> None:
        self.need = need
        self.device = device_of(device, need.gpus)
        settle(need.cpus, self.device)
        self.folder = os.getcwd()
        self.latest: tuple[str, Embeddings] | None = None

    def make_ready(self) -> None:
        """Set the working folder, the threads and torch's defaults again."""
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        settle(self.need.cpus, self.device)

    def reuse(self, key: str, data: Embeddings) -> Embeddings:
        """Return the object of the last call if it had the same key, else ``data``.

        Ray makes a new object of a data set for every call. Examples that are on the device already
        are only recognised if the object is the same.
        """
        if self.latest is None or self.latest[0] != key:
            self.latest = (key, data)
        return self.latest[1]
