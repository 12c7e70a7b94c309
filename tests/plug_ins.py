"""Plug-ins as a stranger would write them, each with a mistake: the starter's text, changed in one
place.
"""

from pathlib import Path

from fedsim.api.new import STARTER

GOOD = STARTER.read_text().replace('@register("my-method")\n', "")
"""Not registered, so that several can live in one process."""


def changed(old: str, new: str) -> str:
    """The starter with one mistake."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def without(method: str) -> str:
    """The starter without a method, whose name is used nowhere else."""
    return changed(f"    def {method}(", f"    def not_{method}(")


def line(text: str, mark: str) -> int:
    """The number of the first line that holds ``mark``."""
    return next(number for number, each in enumerate(text.splitlines(), 1) if mark in each)


def write(folder: Path, stem: str, text: str) -> str:
    """Write the plug-in; returns how a grid names its class."""
    (folder / f"{stem}.py").write_text(text)
    return f"{stem}.py:MyMethod"
