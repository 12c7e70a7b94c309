"""Interrupts a command at the first signal, and ends its process if the command takes too long.

The signals are Ctrl-C, SIGTERM (systemd, scancel, timeout) and SIGHUP (a closed terminal).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code of an interrupted command."""
_GRACE_SECONDS = 4.0
"""The number of seconds that a command has to end by itself before its process is ended.

Without a limit, a library may wait a minute for a server that is gone.
"""
_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_late: list[threading.Timer] = []
"""The timers that end the process if an interruption takes too long."""


@contextmanager
def interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block at the first Ctrl-C, SIGTERM or SIGHUP.

    Signals that are ignored (``nohup``) stay ignored. Outside the main thread nothing changes,
    because only the main thread can handle signals.
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
        # After the first signal, all signals stay ignored, so that none interrupts the clean-up.
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextmanager
def kept_handlers() -> Iterator[None]:
    """Restore all signal handlers after the block, even if a signal has interrupted it.

    The timer that would end the process is cancelled, too. So a process that goes on, such as a
    notebook's, handles signals as before.
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
    """Ignore further signals, limit the time to end, and raise KeyboardInterrupt."""
    for signal_ in _RAISING:  # A second signal would interrupt the clean-up.
        signal.signal(signal_, signal.SIG_IGN)
    timer = threading.Timer(_GRACE_SECONDS, os._exit, [INTERRUPTED])
    _late.append(timer)
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt
