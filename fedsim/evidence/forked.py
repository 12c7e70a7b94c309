"""Functions run in forks of this process, so that what one leaves in memory no other one finds."""

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
"""Makes processes that begin with a copy of this process's memory."""
AT_ONCE = 2
"""The number of forks that run at once, with one thread each."""


class ProcessEnded(Exception):
    """A process ended without a result."""


def forked(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return ``function(*arguments)``, computed in a fork of this process.

    Raises:
        Exception: as :func:`in_forks`.
    """
    return next(in_forks(function, [arguments]))


def in_forks(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
) -> Generator[Result, None, None]:
    """Yield the function's result for each of ``arguments``, in order, each from its own fork.

    Raises:
        ProcessEnded: a fork ended without a result, or its exception cannot be pickled.
        Exception: what the function raised in the fork.
    """
    waiting = iter(arguments)
    running: deque[tuple[Any, Connection]] = deque()
    try:
        while True:
            for next_arguments in islice(waiting, AT_ONCE - len(running)):
                running.append(_start(function, next_arguments))
            if not running:
                return
            child, receiver = running[0]
            result, error = _receive(receiver)
            running.popleft()
            child.join()
            if error is not None:
                raise error
            yield result
    finally:
        for child, _ in running:
            child.kill()
            child.join()


def _start(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Connection]:
    """Start a fork and return it with the end of the pipe on which it answers."""
    receiver, sender = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=_answer, args=(receiver, sender, function, arguments))
    child.start()
    sender.close()
    return child, receiver


def _receive(receiver: Connection) -> tuple[Any, BaseException | None]:
    """Wait for the answer of a fork and return its result and its exception, one of them None."""
    try:
        answer = receiver.recv_bytes()
    except EOFError:
        return None, ProcessEnded("a training ended its process")
    result, error = pickle.loads(answer)  # noqa: S301 (this process's own fork wrote it)
    return result, error


def _answer(
    receiver: Connection,
    sender: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Compute in a fork and send the result or the exception; send nothing if the process exits."""
    receiver.close()  # so that a fork whose parent was killed ends when it answers
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        answer = pickle.dumps((function(*arguments), None))
    except Exception as error:
        answer = _pickled_error(error)
    except BaseException:
        return
    # Sent as bytes, because torch would send tensors by shared memory.
    with suppress(BrokenPipeError):
        sender.send_bytes(answer)


def _pickled_error(error: Exception) -> bytes:
    """Return the answer of a fork whose function raised; its text if it cannot be pickled."""
    with suppress(Exception):
        return pickle.dumps((None, error))
    return pickle.dumps((None, ProcessEnded(said(error))))


def alone(
    function: Callable[..., Result],
    module: str,
    *arguments: Any,
) -> Result:
    """Return ``function(*arguments)``, computed in a process with one thread, which may fork.

    That is this process if it has no other thread. Otherwise it is a new process.

    Args:
        function: the function.
        module: imported first by a new process, such as the module of a plug-in.
        arguments: those of the function.
    """
    if threading.active_count() == 1 or module == "__main__":
        return function(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, importlib.import_module, (module,)) as pool:
        return pool.submit(function, *arguments).result()
