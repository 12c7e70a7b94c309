"""fedsim: federated generative algorithms side by side, under identical partitions and honest differential privacy."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.results.generators import load_generator
    from fedsim.results.grid_rows import load_results

try:
    __version__ = version("fedsim-generative")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load_generator", "load_results"]


def __getattr__(name: str) -> Any:
    # torch, Ray and pandas are imported when one of these is used
    if module := {"load_results": "fedsim.results.grid_rows", "load_generator": "fedsim.results.generators"}.get(name):
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
