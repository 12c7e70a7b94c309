"""Opacus' accountants, imported without the rest of Opacus.

``import opacus`` also imports optimisers and torch's distributed tensors, which takes seconds. The
accountants need neither, except for the name of a type in their base class. So this module stands
in for the package ``opacus.accountants`` and for the module of that base class. Python finds all
other modules in Opacus' folder, and runs them unchanged.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_opacus = find_spec("opacus")  # it finds the package without running it
assert _opacus is not None
__path__ = [f"{folder}/accountants" for folder in _opacus.submodule_search_locations or ()]


class IAccountant:
    """The base class of Opacus' accountants, without its parts for optimisers."""

    def __init__(self) -> None:
        self.history: list[Any] = []


sys.modules[f"{__name__}.accountant"] = sys.modules[__name__]
compute_rdp = import_module(".analysis.rdp", __name__).compute_rdp
"""Opacus' function for the Rényi divergence of Gaussian mechanisms."""
PRVAccountant = import_module(".prv", __name__).PRVAccountant
"""Opacus' accountant that composes privacy loss random variables."""
