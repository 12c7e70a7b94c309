"""Functions run in forks of this process: what one of them leaves in memory, no other one finds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

import torch

from fedsim.plugins.registry import said

Result = TypeVar("Result")
AT_ONCE = 2
"""Forks that run at once, of one thread each."""


class ProcessEnded(Exception):
    """A process ended without a result."""


def forked(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a fork of this process, which stays as it is; raises as :func:`in_forks`."""
    return next(in_forks(function, [arguments]))


def in_forks(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Generator[Result, None, None]:
    """The function's result for each of ``arguments``, in order, each in a fork of its own.

    Raises:
        ProcessEnded: a fork ended early.
        Exception: what the function raised, without its traceback.
    """
    waiting, running = iter(arguments), deque[tuple[int, Connection]]()
    try:
        while True:
            running.extend(_started(function, own) for own in islice(waiting, AT_ONCE - len(running)))
            if not running:
                return
            result, error = _received(running[0][1])
            os.waitpid(running.popleft()[0], 0)
            if error is not None:
                raise error
            yield cast("Result", result)
    finally:
        for child, _ in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _started(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[int, Connection]:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            receiver.close()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            torch.set_num_threads(1)
            sender.send_bytes(_attempted(function, arguments))
        finally:
            # skips the parent's clean-up
            os._exit(1)
    sender.close()
    return child, receiver


def _attempted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function(*arguments), None))
    except Exception as error:
        try:
            return pickle.dumps((None, error))
        except Exception:
            return pickle.dumps((None, ProcessEnded(said(error))))


def _received(receiver: Connection) -> tuple[Any, Exception | None]:
    with receiver:
        try:
            return cast("tuple[Any, Exception | None]", pickle.loads(receiver.recv_bytes()))  # noqa: S301 (this process's own fork wrote it)
        except EOFError:
            return None, ProcessEnded("a training ended its process")


def alone(function: Callable[..., Result], module: str, *arguments: Any) -> Result:
    """``function(*arguments)``, which forks: here if this is the only thread, else in a spawned process that imports ``module`` first."""
    if threading.active_count() == 1 or module == "__main__":
        return function(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, importlib.import_module, (module,)) as pool:
        return pool.submit(function, *arguments).result()
