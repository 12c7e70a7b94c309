"""Functions run in forks of this process: what one of them leaves in memory, no other one finds."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from fedsim.plugins.registry import said

Result = TypeVar("Result")
FORKS = multiprocessing.get_context("fork")
AT_ONCE = 2
"""Forks that run at once, of one thread each."""


class ProcessEnded(Exception):
    """A process ended without a result."""


def forked(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a fork of this process, which stays as it is; raises as
    :func:`in_forks`.
    """
    return next(in_forks(function, [arguments]))


def in_forks(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]
) -> Generator[Result, None, None]:
    """The function's result for each of ``arguments``, in order, each in a fork of its own."""
    waiting = iter(arguments)
    running = deque[tuple[Any, Connection]]()
    try:
        while True:
            running.extend(
                _started(function, own) for own in islice(waiting, AT_ONCE - len(running))
            )
            if not running:
                return
            try:
                result, error = pickle.loads(running[0][1].recv_bytes())  # noqa: S301 (this process's own fork wrote it)
            except EOFError:
                result = None
                error = ProcessEnded("a training ended its process")
            running.popleft()[0].join()
            if error is not None:
                raise error
            yield result
    finally:
        for child, _ in running:
            child.kill()
            child.join()


def _started(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Connection]:
    receiver, sender = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=_answer, args=(receiver, sender, function, arguments))
    child.start()
    sender.close()
    return child, receiver


def _answer(
    receiver: Connection,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    receiver.close()  # so that a fork whose parent is killed ends as it answers
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        answer = pickle.dumps((function(*arguments), None))
    except Exception as error:
        with suppress(Exception):
            answer = pickle.dumps((None, ProcessEnded(said(error))))
            answer = pickle.dumps((None, error))
    except BaseException:  # an early end
        return
    # as bytes, for torch would send tensors by shared memory
    with suppress(BrokenPipeError):
        sender.send_bytes(answer)


def alone(function: Callable[..., Result], module: str, *arguments: Any) -> Result:
    """``function(*arguments)``, which forks: here if this is the only thread, else in a spawned
    process that imports ``module`` first.
    """
    if threading.active_count() == 1 or module == "__main__":
        return function(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, importlib.import_module, (module,)) as pool:
        return pool.submit(function, *arguments).result()
