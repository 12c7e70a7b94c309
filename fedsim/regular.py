"""Files that others made: only regular ones are ever opened, so that no pipe or device can keep a reader waiting or feed it for ever."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path | str) -> BufferedReader:
    """A regular file, or a link to one, for reading bytes.

    Raises:
        OSError: there is none, it is of another kind, or it may not be read; ``strerror`` says which.
    """
    try:
        _check(os.stat(path), path)
        # without waiting: what was a file a moment ago may be a pipe by now
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # a path with a zero byte
        raise OSError(0, str(error), str(path)) from error
    try:
        _check(os.fstat(file), path)
    except OSError:
        os.close(file)
        raise
    return os.fdopen(file, "rb")


def _check(found: os.stat_result, path: Path | str) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(0, f"it is {_KINDS.get(kind, 'of no known kind')}", str(path))


def read_regular(path: Path | str) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def without_waiting(path: str, flags: int) -> int:
    """An opener for writing: a named pipe that nobody reads is an error and no wait."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def unread(error: BaseException) -> str:
    """Why a file cannot be read, in a few words: without the path, which a message names anyway."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split())[:200] or type(error).__name__
