"""Garbage is not looked for among imported modules: a fifth of what torch, Ray and scikit-learn take to load, and most of an exit."""

from __future__ import annotations

import atexit
import gc

OLDEST = 100
"""Collections of the middle generation between two of everything; Python's own 10 make five of them while a command starts."""


def look_rarely() -> None:
    """Look through everything that this process holds a tenth as often, and not when it ends."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, OLDEST)
    atexit.register(gc.freeze)
