"""The revision of the accounting code, which a row records beside its epsilon."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fedsim import __version__

_CODE = ("mechanism.py", "plan.py", "ledger.py", "accountant.py", "selection.py")
_PACKAGES = ("opacus", "dp-accounting", "numpy", "scipy")


@cache
def counted_by() -> str:
    """Fedsim's version with the hash of the code that plans and counts, and the versions of the packages it uses."""
    folder = Path(__file__).parent
    code = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in _CODE)).hexdigest()[:12]
    return ", ".join([f"fedsim {__version__} {code}", *(f"{name} {version(name)}" for name in _PACKAGES)])
