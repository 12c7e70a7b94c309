"""fedsim: federated generative algorithms side by side, under identical partitions and honest differential privacy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.results.generators import load_generator
    from fedsim.results.grid_rows import load_results

try:
    __version__ = version("fedsim")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load_generator", "load_results"]


def __getattr__(name: str) -> Any:
    # torch, Ray and pandas are imported when one of these is used
    if name == "load_results":
        from fedsim.results.grid_rows import load_results

        return load_results
    if name == "load_generator":
        from fedsim.results.generators import load_generator

        return load_generator
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
