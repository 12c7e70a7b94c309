"""Where in a plug-in's source something is or happened, as ``file:line``."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

from fedsim.plugins.code_hash import FEDSIM, INSTALLED, shown


def line_of(thing: Any) -> str:
    """Where a class, function or method is defined; its name where that is not to be found."""
    try:
        return f"{shown(inspect.getsourcefile(thing) or '')}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):  # made in an interpreter, or its file is gone
        return str(getattr(thing, "__qualname__", thing))


def origin(error: BaseException, file: str | None = None) -> str | None:
    """``file:line`` of an exception: the innermost frame in the plug-in's folder; None where it has no part in it.

    The plug-in is ``file``, by default that of the first module that an import executed.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    first = file or next((frame.filename for frame in frames if frame.name == "<module>"), None)
    own = [frame for frame in frames if first is not None and _belongs(Path(frame.filename), Path(first))]
    return f"{shown(own[-1].filename)}:{own[-1].lineno}" if own else None


def blamed(error: BaseException, cls: type) -> str:
    """``file:line`` of an exception in the code of an algorithm, or of its class where it was raised elsewhere."""
    try:
        return origin(error, inspect.getsourcefile(cls)) or line_of(cls)
    except (OSError, TypeError):  # a class of a notebook
        return line_of(cls)


def said(error: BaseException) -> str:
    """An exception on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")


def _belongs(file: Path, plug_in: Path) -> bool:
    """Whether ``file`` lies in the plug-in's folder, apart from what is installed there or is fedsim; an installed module is alone."""
    if file == plug_in or plug_in.parent.name in INSTALLED or not file.is_relative_to(plug_in.parent):
        return file == plug_in
    return not file.is_relative_to(FEDSIM) and not INSTALLED & set(file.relative_to(plug_in.parent).parts)
