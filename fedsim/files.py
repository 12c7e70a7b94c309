"""Replaces files completely or not at all, names them in messages, and finds the cache folder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def shown(file: str | Path) -> str:
    """Return a path for a message, relative to the working folder if it is below it."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(path)


def line_of(thing: Any) -> str:
    """Return the file and line that define a class or function, or its name if no file is known."""
    try:
        return f"{shown(inspect.getsourcefile(thing) or '')}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):  # It was defined in an interpreter, or its file is gone.
        return str(getattr(thing, "__qualname__", thing))


def cache_folder() -> Path:
    """Return the folder of cached embeddings, data sets and plans.

    It is ``$FEDSIM_CACHE``, or else ``fedsim`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if folder := os.environ.get("FEDSIM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"


def unread(error: BaseException) -> str:
    """Return a short reason why a file cannot be read; it does not contain the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def replaced(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Give the block a new file to write, which then replaces ``path``.

    If the block fails, the new file is removed and ``path`` stays as it is. If two processes
    replace one file, the later one wins.

    Args:
        path: the file to replace; its folder is made.
        mode: the permissions that the file gets before anything is written to it. None: the
            process's default.

    Yields:
        The path of the new file.

    Raises:
        OSError: the file cannot be written or replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new_file = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if mode is not None:
            # Permissions are set when a file is created, so an old one is removed first.
            new_file.unlink(missing_ok=True)
            new_file.touch(mode, exist_ok=False)
        yield new_file
        new_file.replace(path)
    except OSError as error:
        # The user does not know the new file. An error such as a full disk names no file.
        if error.filename2 is None and error.filename in (None, str(new_file)):
            error.filename = str(path)
        raise
    finally:
        # A read-only file system refuses this, too. Then the first error is the one to raise.
        with suppress(OSError):
            new_file.unlink()


def discard(path: Path) -> None:
    """Remove a file, and unfinished copies left by processes that died while replacing it."""
    path.unlink(missing_ok=True)
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)
