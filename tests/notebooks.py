"""A notebook's cells without its server: each is compiled under a name of its own that
``linecache`` knows, and runs in ``__main__``.
"""

from __future__ import annotations

import linecache
import sys
from itertools import count
from types import ModuleType
from typing import Any

import pytest


class Notebook:
    """Runs cells one after another in a ``__main__`` that stands in for the test's until the test
    ends.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        main = ModuleType("__main__")
        patch.setitem(sys.modules, "__main__", main)
        self.names: dict[str, Any] = main.__dict__
        self.names["In"] = self._ran = [""]
        self._numbers = count()

    def cell(self, text: str) -> None:
        """Run a cell."""
        name = f"<cell {id(self)} {next(self._numbers)}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        self._ran.append(text)
        exec(compile(text, name, "exec", dont_inherit=True), self.names)


class IPython:
    """The same in IPython's own shell."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._shell = pytest.importorskip(
            "IPython.core.interactiveshell"
        ).InteractiveShell.instance()
        patch.setitem(sys.modules, "__main__", self._shell.user_module)
        self.names: dict[str, Any] = self._shell.user_ns

    def cell(self, text: str) -> None:
        """Run a cell; what it raises is raised."""
        self._shell.run_cell(text, store_history=True).raise_error()
