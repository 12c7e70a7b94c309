"""Runs functions in forks of this process, so that no call sees what another left in memory."""

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
        Exception: as :func:`in_forks` raises it.
    """
    return next(in_forks(function, [arguments]))


def in_forks(
    function: Callable[..., Result],
    arguments: Iterable[tuple[Any, ...]],
) -> Generator[Result, None, None]:
    """Yield the function's result for each of ``arguments``, in order, each from its own fork.

    Args:
        function: the function.
        arguments: the arguments of each call.

    Raises:
        ProcessEnded: a fork ended without a result, or its exception cannot be pickled.
        Exception: the exception that the function raised in the fork.
    """
    waiting = iter(arguments)
    running: deque[tuple[Any, Connection]] = deque()
    try:
        while True:
            # Start forks until as many run as may run at once.
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
    """Wait for a fork's answer and return its result and its exception, at least one None."""
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
    # Otherwise the fork would hold a reader of its own pipe, and sending could block for ever after
    # its parent was killed.
    receiver.close()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        answer = pickle.dumps((function(*arguments), None))
    except Exception as error:
        answer = _pickled_error(error)
    except BaseException:
        return
    # The answer is sent as bytes, because torch would send tensors through shared memory.
    with suppress(BrokenPipeError):
        sender.send_bytes(answer)


def _pickled_error(error: Exception) -> bytes:
    """Return a fork's answer with the exception, or with its text if pickling fails.

    An exception whose ``__init__`` takes other arguments than its ``args`` can be pickled but not
    unpickled.
    """
    with suppress(Exception):
        answer = pickle.dumps((None, error))
        pickle.loads(answer)  # noqa: S301 (this process wrote it)
        return answer
    return pickle.dumps((None, ProcessEnded(said(error))))


def alone(
    function: Callable[..., Result],
    module: str,
    *arguments: Any,
) -> Result:
    """Return ``function(*arguments)``, computed in a process with one thread, which may fork.

    This process computes it if it has no other thread, and otherwise a new process does. A new
    process may not know what ``__main__`` defines, so for this module it is always this process.

    Args:
        function: the function.
        module: the module that a new process imports first, such as the module of a plug-in.
        arguments: the arguments of the function.
    """
    if threading.active_count() == 1 or module == "__main__":
        return function(*arguments)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, importlib.import_module, (module,)) as pool:
        return pool.submit(function, *arguments).result()
