"""Files: replaced at once or not at all, opened only where they are regular; and fedsim's cache
folder.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def shown(file: str | Path) -> str:
    """A path, from the working folder where it lies below it."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def line_of(thing: Any) -> str:
    """Where a class, function or method is defined; its name where that is not to be found."""
    try:
        return f"{shown(inspect.getsourcefile(thing) or '')}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):  # made in an interpreter, or its file is gone
        return str(getattr(thing, "__qualname__", thing))


def cache_folder() -> Path:
    """``$FEDSIM_CACHE``, or ``fedsim`` below ``$XDG_CACHE_HOME`` or ``~/.cache``: embeddings, data
    sets, plans.
    """
    if given := os.environ.get("FEDSIM_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"


def unread(error: BaseException) -> str:
    """Why a file cannot be read, in a few words: without the path, which a message names anyway."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def replaced(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A new file to write to in the block; when that ends well it takes the place of ``path``,
    otherwise it is gone.

    Two processes may replace one file; the later one wins.

    Args:
        path: the file; its folder is made.
        mode: permissions that the file has before anything is in it; default: the process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if mode is not None:
            part.unlink(missing_ok=True)
            part.touch(mode, exist_ok=False)
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename2 is None and error.filename in (
            None,
            str(part),
        ):  # None: a write, of a full disk
            error.filename = str(path)
        raise
    finally:
        with suppress(
            OSError
        ):  # a file system that is read-only refuses that too; the first error is raised
            part.unlink()


def discard(path: Path) -> None:
    """Remove a file, and what a process that died while it replaced it left behind."""
    path.unlink(missing_ok=True)
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)
