"""Ctrl-C, SIGTERM (systemd, scancel, timeout) and SIGHUP (a closed terminal) end a command, once
and soon.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code."""
_ENDING = 4.0
"""Seconds that an orderly end may take; a call into a library that waits for a server which is gone
takes a minute.
"""
_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_late: list[threading.Timer] = []
"""What ends the process where an interruption has not in time."""


@contextmanager
def interrupts() -> Iterator[None]:
    """In the block these signals raise KeyboardInterrupt, once; what is ignored (``nohup``) stays
    ignored. Only the main thread can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: handler
        for number in _RAISING
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """After the block a process that stays, such as a notebook's, hears signals as before, even if
    one has interrupted the block.
    """
    before = {
        number: handler for number in _RAISING if (handler := signal.getsignal(number)) is not None
    }
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            while _late:
                _late.pop().cancel()
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for signal_ in _RAISING:  # a second one would interrupt the clean-up
        signal.signal(signal_, signal.SIG_IGN)
    _late.append(late := threading.Timer(_ENDING, os._exit, [INTERRUPTED]))
    late.daemon = True
    late.start()
    raise KeyboardInterrupt
