"""Ctrl-C, SIGTERM (systemd, scancel, timeout) and SIGHUP (a closed terminal) end a command, once and soon."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
"""The exit code."""
_ENDING = 4.0
"""Seconds that an orderly end may take; a call into a library that waits for a server which is gone takes a minute."""
_RAISING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupts() -> Iterator[None]:
    """In the block these signals raise KeyboardInterrupt, once; what is ignored (``nohup``) stays ignored. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in _RAISING if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
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
    """After the block a process that stays, such as a notebook's, hears signals as before, even if one has interrupted the block."""
    before = {number: handler for number in _RAISING if (handler := signal.getsignal(number)) is not None}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def soon() -> Iterator[None]:
    """In the block, and after it, kill the process if an interruption has not ended it in time."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_late, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writing)


def _end_late(reading: int) -> None:
    """Wait for a signal, and then for the process's end."""
    while (number := os.read(reading, 1)) and number[0] not in _RAISING:
        pass
    if not number:  # the block ended by itself
        os.close(reading)
        return
    time.sleep(_ENDING)
    with suppress(OSError, ValueError):  # not by sys.stdout, whose lock may be held, nor into a pipe that is full
        if select.select([], [1], [], 0)[1]:
            os.write(1, b"interrupted; the same command goes on\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for signal_ in _RAISING:  # a second one would interrupt the clean-up
        signal.signal(signal_, signal.SIG_IGN)
    _without_dead_terminal()
    raise KeyboardInterrupt


def _without_dead_terminal() -> None:
    """Send what is still printed nowhere where the terminal is closed: every write to it is an error."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty():
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
