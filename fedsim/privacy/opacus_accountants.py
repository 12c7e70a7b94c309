"""Opacus' accountants, which are numpy and scipy alone, without Opacus' optimisers, which are torch: seconds less to start."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "fedsim_opacus_accountants"
"""What ``opacus.accountants`` is called here, so that ``opacus`` itself stays what it is to everybody else."""


class _History:
    """What an accountant needs of its base class, whose module wants the optimisers for a type."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


@cache
def opacus_accountants(module: str) -> Any:
    """A module of ``opacus.accountants`` from Opacus' own file, such as ``prv`` or ``analysis.rdp``.

    Raises:
        ImportError: Opacus is not installed, or its accountants are somewhere else.
    """
    if PACKAGE not in sys.modules:
        spec = find_spec("opacus")
        if spec is None or spec.origin is None:
            raise ImportError("opacus is not installed: its accountants count what a plan spends")
        package, base = ModuleType(PACKAGE), ModuleType(f"{PACKAGE}.accountant")
        package.__path__ = [str(Path(spec.origin).parent / "accountants")]
        base.IAccountant = _History  # type: ignore[attr-defined]
        sys.modules |= {PACKAGE: package, base.__name__: base}
    with _signal_when_used():
        return importlib.import_module(f"{PACKAGE}.{module}")


@contextmanager
def _signal_when_used() -> Iterator[None]:
    """What the block imports gets a ``scipy.signal`` whose ``convolve`` imports the real one when it is called: 0.4 s less."""
    if "scipy.signal" in sys.modules:
        yield
        return
    later = ModuleType("scipy.signal")
    later.convolve = _convolve  # type: ignore[attr-defined]
    sys.modules["scipy.signal"] = later
    try:
        yield
    finally:
        del sys.modules["scipy.signal"]


def _convolve(*arrays: Any, **options: Any) -> Any:
    from scipy.signal import convolve

    return convolve(*arrays, **options)
