"""Federated generative algorithms side by side, under differential privacy."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.api.functions import account as account
    from fedsim.api.functions import algorithms as algorithms
    from fedsim.api.functions import audit as audit
    from fedsim.api.functions import bench as bench
    from fedsim.api.functions import check as check
    from fedsim.api.functions import embed as embed
    from fedsim.api.new import new as new
    from fedsim.api.run import Run as Run
    from fedsim.api.run import board as board
    from fedsim.api.run import load as load
    from fedsim.errors import UserError as UserError

try:
    __version__ = version("fedsim-generative")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "fedsim.api.functions": ("account", "algorithms", "audit", "bench", "check", "embed"),
    "fedsim.api.new": ("new",),
    "fedsim.api.run": ("Run", "board", "load"),
    "fedsim.errors": ("UserError",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # torch, Ray and pandas are imported when one of these is used
    if home := _HOME.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return ["__version__", *_HOME]
