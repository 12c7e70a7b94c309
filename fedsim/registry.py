"""Algorithms by name: ``@register``, entry points of group ``fedsim.algorithms``, and ``pkg.module:Class`` paths."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from fedsim.errors import UserError, nearest

if TYPE_CHECKING:
    from fedsim.algorithm import Algorithm

GROUP = "fedsim.algorithms"
_registered: dict[str, type[Algorithm]] = {}
_Class = TypeVar("_Class", bound="type[Algorithm]")


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an algorithm known under ``name``.

    Raises:
        ValueError: another class already has the name.
    """

    def add(cls: _Class) -> _Class:
        held = _registered.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"algorithm '{name}' is already registered by {held.__module__}:{held.__qualname__}")
        cls.name = name
        _registered[name] = cls
        return cls

    return add


def known() -> list[str]:
    """All names: registered classes and installed entry points, sorted."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))})


def lookup(name: str, where: str = "algorithm") -> type[Algorithm]:
    """The class behind a registered name, an entry point, or a ``pkg.module:Class`` path.

    Args:
        name: as a grid file gives it.
        where: the place to name in an error.

    Raises:
        UserError: nothing has the name (the known ones are listed), or the plug-in cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    path = next((entry.value for entry in entry_points(group=GROUP) if entry.name == name), name)
    if ":" not in path:
        raise UserError(where, f"unknown algorithm '{name}'", nearest(name, known()))
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a plug-in may raise anything as it is imported
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(where, f"'{path}' cannot be imported ({problem})", "give an importable pkg.module:Class") from error
    from fedsim.algorithm import Algorithm

    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(where, f"'{path}' is not an Algorithm", "derive the class from fedsim.algorithm.Algorithm")
    if not hasattr(found, "name"):
        found.name = name
    return found
