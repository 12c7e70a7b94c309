"""fedsim: federated generative algorithms side by side, under identical partitions and honest differential privacy."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.api.budgets import account as account
    from fedsim.api.data import embed as embed
    from fedsim.api.describe import describe as describe
    from fedsim.api.grids import bench as bench
    from fedsim.api.grids import partition as partition
    from fedsim.api.grids import plan as plan
    from fedsim.api.grids import tune as tune
    from fedsim.api.methods import algorithms as algorithms
    from fedsim.api.methods import audit as audit
    from fedsim.api.methods import check as check
    from fedsim.api.run import Run as Run
    from fedsim.api.run import board as board
    from fedsim.api.run import load as load
    from fedsim.errors import UserError as UserError

try:
    __version__ = version("fedsim-generative")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOMES = {
    "fedsim.api.budgets": ("account",),
    "fedsim.api.data": ("embed",),
    "fedsim.api.describe": ("describe",),
    "fedsim.api.grids": ("bench", "partition", "plan", "tune"),
    "fedsim.api.methods": ("algorithms", "audit", "check"),
    "fedsim.api.run": ("Run", "board", "load"),
    "fedsim.errors": ("UserError",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Face(ModuleType):
    """A package whose function ``partition`` stays one after the subpackage of that name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    # torch, Ray and pandas are imported when one of these is used
    if home := _HOME.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'fedsim' has no attribute '{name}'")


def __dir__() -> list[str]:
    return ["__version__", *_HOME]


sys.modules[__name__].__class__ = _Face
