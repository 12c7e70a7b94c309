"""Functions run in fresh processes, in which no algorithm has trained: what one training caches, no other one finds."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

import torch

from fedsim.errors import UserError
from fedsim.plugins.places import said

Result = TypeVar("Result")
PRELOADED = ["__main__", "fedsim.evidence.check.preloaded"]
"""What the server imports."""
PROCESSES_AT_ONCE = 2
"""Of one thread each."""


class ProcessEnded(Exception):
    """A process ended without a result."""


def in_fresh_processes(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], module: str) -> Iterator[Result]:
    """The function's result for each of ``arguments``, in order; a server process forks for all, so that packages are imported once.

    Args:
        function: importable by name.
        arguments: picklable.
        module: imported before, so that the algorithms that it registers are known.

    Raises:
        ProcessEnded: a process died, or the function raised an exception other than this and UserError, which are raised as they are.
    """
    start_server()
    with ThreadPoolExecutor(PROCESSES_AT_ONCE) as threads:
        try:
            yield from threads.map(partial(_in_fresh_process, function, module), list(arguments))
        finally:
            threads.shutdown(cancel_futures=True)


def start_server() -> None:
    """Start the server where none runs; Ctrl-C reaches it once what it imports first has seen to it that it ends without a traceback."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # before, since it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_fresh_process(function: Callable[..., Result], module: str, arguments: tuple[Any, ...]) -> Result:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, function, module, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessEnded(f"a fresh process ended with exit code {process.exitcode}") from None
    process.join()
    if error is not None:
        raise error
    return cast("Result", result)


def _serve(sender: Connection, function: Callable[..., Any], module: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        # a plug-in that is the running script has been imported under another name
        if module != "__main__":
            importlib.import_module(module)
        sender.send((function(*arguments), None))
    except (UserError, ProcessEnded) as error:
        sender.send((None, error))
    except Exception as error:
        sender.send((None, ProcessEnded(said(error))))


def forked(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a fork of this process, which stays as it is.

    Raises:
        Exception: what the function raised.
        ProcessEnded: the process died.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            receiver.close()
            sender.send_bytes(_attempted(function, arguments))
        finally:
            # skips the parent's clean-up
            os._exit(0)
    sender.close()
    try:
        result, error = pickle.loads(receiver.recv_bytes())  # noqa: S301 (this process's own fork wrote it; a pipe's pickler would share tensors)
    except EOFError:
        raise ProcessEnded("a training ended its process") from None
    finally:
        os.waitpid(child, 0)
    if error is not None:
        raise error
    return cast("Result", result)


def _attempted(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function(*arguments), None))
    except Exception as error:
        return pickle.dumps((None, error))
