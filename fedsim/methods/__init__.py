"""The base classes and types for authors of methods: ``from fedsim.methods import DPSGD, Batch, Server, ...``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.methods.face import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # torch is imported when a name is used, not with every module of this package
    face = importlib.import_module("fedsim.methods.face")
    if name.startswith("_") or not hasattr(face, name):
        raise AttributeError(f"module 'fedsim.methods' has no attribute '{name}'")
    return getattr(face, name)
