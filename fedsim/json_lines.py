"""Reads and writes lines of JSON, in which numbers that are not finite are words.

A text that is such a word, as a label may be, gets a mark before it, so that :func:`decode` returns
the text unchanged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from fedsim.errors import UserError
from fedsim.files import unread
from fedsim.words import json_number

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_WORD = re.compile(r"'*(?:-?inf|nan)")
"""Matches a text that is the word of a number, with any marks before it."""
_MARK = "'"
_ENDS = ('inf"', 'nan"')
"""The endings of words; every line with the word of a number has one of them."""
load = from_json
"""Returns a JSON text as plain values; raises ValueError if it is not JSON or nested too deeply."""


def is_json(line: bytes) -> bool:
    """Return whether a line is a complete JSON object."""
    try:
        return isinstance(load(line), dict)
    except ValueError:
        return False


def complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and content of every complete line of a file; nothing if there is no file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (line.endswith(b"\n") or is_json(line)):
                    yield number, line.removesuffix(b"\n")
    except FileNotFoundError:
        return
    except IsADirectoryError as error:
        raise UserError(
            str(path),
            "is a folder, and must be a file",
            "move it away, or give another run folder",
        ) from error
    except OSError as error:
        raise UserError(
            str(path),
            f"cannot be read ({unread(error)})",
            "make the file readable, or give another run folder",
        ) from error


def has_words(line: bytes) -> bool:
    """Return whether a line may hold the word of a number, which :func:`decode` changes."""
    return any(end.encode() in line for end in _ENDS)


def dump(value: Any) -> str:
    """Return a value as one line of JSON, which ``decode(load(line))`` turns back."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a number that is not finite, an array or a path
        pass
    else:
        if not any(end in line for end in _ENDS):
            return line
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def plain_json(value: Any) -> str:
    """Return a value as JSON without marks, for readers that know the type of every value."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def encode(value: Any) -> Any:
    """Return :func:`plain` values, with a mark before each text that is a number's word."""
    return _json_values(value, _MARK)


def plain(value: Any) -> Any:
    """Return a value as plain JSON values.

    Numbers that are not finite become "inf", "-inf" or "nan", arrays and tensors become lists, and
    paths become texts.
    """
    return _json_values(value, "")


def _json_values(value: Any, mark: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_values(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item, mark) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        if _WORD.fullmatch(value):
            return mark + value
        return value
    if hasattr(value, "tolist"):
        return _json_values(value.tolist(), mark)
    return json_number(value)


def decode(value: Any) -> Any:
    """Return the value that :func:`encode` was given, as plain values."""
    if isinstance(value, str):
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if _WORD.fullmatch(value):
            return value.removeprefix(_MARK)
        return value
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def reasons(error: Exception) -> list[str]:
    """Return at most three short reasons why a line is not valid."""
    if isinstance(error, ValidationError):
        return [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ")
            for item in error.errors()
        ][:3]
    return [str(error)]
