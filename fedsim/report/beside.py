"""What a report of many rows is drawn with: a second process, and no search for cycles of objects."""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

MANY_ROWS = 1000
"""So many rows have enough to draw that a second process is worth its start."""

LATE_SECONDS = 1.0
"""So long the end of the block waits for the thread that sent to the process."""


@contextmanager
def process_beside(rows: int, module: str) -> Iterator[Executor | None]:
    """A process that runs functions of ``module``, imported by the time that the records are read; it ends with the block.

    None for few rows, and where there is one processor.
    """
    if rows < MANY_ROWS:
        yield None
        return
    import joblib  # late, for few reports have so many rows
    from joblib.externals.loky import ProcessPoolExecutor

    if joblib.cpu_count() < 2:
        yield None
        return
    others = set(threading.enumerate())
    beside = ProcessPoolExecutor(1)
    try:
        beside.submit(importlib.import_module, module)
        yield beside
    finally:
        beside.shutdown(kill_workers=True)  # what it was asked for is here, and its own end takes most of a second
        for thread in set(threading.enumerate()) - others:
            if thread.name == "QueueFeederThread":  # a daemon: the interpreter's end would take it while it gives back a lock
                thread.join(LATE_SECONDS)


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for unreachable cycles in the block: records and figures are many objects that stay, gone through again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
