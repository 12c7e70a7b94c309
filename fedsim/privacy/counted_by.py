"""The revision of the code that counts: what a row says of who computed its epsilon."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

_CODE = ("plan.py", "ledger.py", "accountant.py")
_PACKAGES = ("opacus", "numpy", "scipy")


@cache
def counted_by() -> str:
    """Fedsim's version with the hash of the code that plans and counts, and the packages that it rests on."""
    folder = Path(__file__).parent
    code = hashlib.sha256(b"".join(hashlib.sha256((folder / name).read_bytes()).digest() for name in _CODE)).hexdigest()[:12]
    return ", ".join([f"fedsim {version('fedsim')} {code}", *(f"{name} {version(name)}" for name in _PACKAGES)])
