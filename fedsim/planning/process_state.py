"""What a plug-in may change in the process that runs it, and how it is put back, so that the next cell is not the one to pay."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

PATCHABLE = ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.random", "numpy", "numpy.linalg", "numpy.random")
"""Modules whose attributes are put back, beside fedsim's own."""
OWN_PACKAGES = ("fedsim", "algorithms", "baselines")


def _patchable() -> dict[Any, dict[str, Any]]:
    """The attributes of modules, and of torch's tensor and module classes, that others rely on."""
    modules = [module for name, module in list(sys.modules.items()) if name in PATCHABLE or name.partition(".")[0] in OWN_PACKAGES]
    return {thing: dict(vars(thing)) for thing in (*modules, torch.Tensor, torch.nn.Module)}


def _default_device() -> torch.device:
    """Where new tensors are; torch's own function fails in older versions once the default was taken back."""
    return torch.empty(0).device


@dataclass(frozen=True)
class ProcessState:
    """The settings of a process as they were when this was made.

    Not among them is what a plug-in starts (threads, processes) and what it changes behind Python's back.
    """

    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    device: torch.device = field(default_factory=_default_device)
    gradients: bool = field(default_factory=torch.is_grad_enabled)
    threads: int = field(default_factory=torch.get_num_threads)
    deterministic: bool = field(default_factory=torch.are_deterministic_algorithms_enabled)
    floats: dict[str, Any] = field(default_factory=lambda: dict(np.geterr()))
    folder: str = field(default_factory=os.getcwd)
    path: list[str] = field(default_factory=lambda: list(sys.path))
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    filters: list[Any] = field(default_factory=lambda: list(warnings.filters))
    recursion: int = field(default_factory=sys.getrecursionlimit)
    streams: tuple[Any, Any] = field(default_factory=lambda: (sys.stdout, sys.stderr))
    attributes: dict[Any, dict[str, Any]] = field(default_factory=_patchable, repr=False)

    def put_back(self) -> None:
        """Undo what was changed since; folders that were added to ``sys.path`` stay, behind the others."""
        torch.set_default_dtype(self.dtype)
        if _default_device() != self.device:
            torch.set_default_device(None if self.device.type == "cpu" else self.device)
        torch.set_grad_enabled(self.gradients)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        torch.set_flush_denormal(False)
        np.seterr(**self.floats)
        with suppress(OSError):
            os.chdir(self.folder)
        sys.path[:] = [*self.path, *(folder for folder in sys.path if folder not in self.path)]
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        warnings.filters[:] = self.filters  # type: ignore[index]
        sys.setrecursionlimit(self.recursion)
        sys.stdout, sys.stderr = self.streams
        for thing, attributes in self.attributes.items():
            for name, value in attributes.items():
                if vars(thing).get(name, thing) is not value:
                    setattr(thing, name, value)
            if isinstance(thing, type):
                for name in [name for name in vars(thing) if name not in attributes]:
                    delattr(thing, name)


def limit_memory(bytes_: float) -> None:
    """Let this process take so many bytes more than it has now; 0: any number. What it asks for beyond is refused: a MemoryError.

    Shared memory, in which Ray keeps data sets, does not count.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    lines = Path("/proc/self/status").read_text().splitlines()
    has = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (has + int(bytes_) if bytes_ else hard, hard))
