"""fedsim's cache folder: embeddings, and data sets that have no folder of their own."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$FEDSIM_CACHE``, or ``fedsim`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if given := os.environ.get("FEDSIM_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
