"""The entry point of the command ``fedsim``.

It stands outside the package, because another distribution may have put its own ``fedsim`` in its
place.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution


def main() -> None:
    """Run the command.

    If the other simulator called ``fedsim`` is installed, say so in one line; the exit code is 2.
    """
    if other := _other():
        hint = "python -m pip uninstall -y fedsim fedsim-generative, then install this one again"
        message = f"{other} is another simulator, which hides or replaces fedsim-generative; {hint}"
        print(f"fedsim: {message}", file=sys.stderr)
        sys.exit(2)
    from fedsim.cli import main as command

    command()


def _other() -> str | None:
    """Return the installed distribution ``fedsim`` with its folder; None if there is none.

    This distribution was called so before version 0.2, and does not count.
    """
    try:
        installed = distribution("fedsim")
    except PackageNotFoundError:
        return None
    if installed.entry_points.select(group="fedsim.algorithms"):
        return None
    return f"fedsim {installed.version} in {installed.locate_file('')}"
