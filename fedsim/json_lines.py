"""Rows and records as lines of JSON: numbers that are not finite are words.

A text that is such a word, as a label may be, has a mark before it in a line, so that
:func:`decode` gives it back as the text that it was.
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
"""A text that is a number's word, or one that has marks before it."""
_MARK = "'"
_ENDS = ('inf"', 'nan"')
"""One of them is in every line that holds a word of a number."""
load = from_json
"""A JSON text as plain values; what is none, or is nested too deeply, is a ValueError."""


def is_json(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(load(line), dict)
    except ValueError:
        return False


def complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers and complete lines of a file, read as they are asked for; none where there is no
    file.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (line.endswith(b"\n") or is_json(line)):
                    yield number, line.removesuffix(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            str(path),
            f"cannot be read ({unread(error)})",
            "move it away, or give another run folder",
        ) from error


def has_words(line: bytes) -> bool:
    """Whether :func:`decode` may change what is in a line: it may hold a word of a number."""
    return any(end.encode() in line for end in _ENDS)


def dump(value: Any) -> str:
    """A value as one line of JSON, without the newline; ``decode(load(line))`` gives it back."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a number that is not finite, an array or a path
        pass
    else:
        if not any(end in line for end in _ENDS):
            return line
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def plain_json(value: Any) -> str:
    """A value as JSON for readers that know the type of every value: its texts are as they are."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def encode(value: Any) -> Any:
    """The :func:`plain` values, with a mark before each text that is a number's word."""
    return _json_values(value, _MARK)


def plain(value: Any) -> Any:
    """Plain JSON values: not-finite numbers as "inf", "-inf", "nan"; arrays and tensors as lists;
    paths as strings.
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
    """What :func:`encode` was given, as far as plain values go."""
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
    """What is wrong with a line: at most three short reasons."""
    if isinstance(error, ValidationError):
        return [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ")
            for item in error.errors()
        ][:3]
    return [str(error)]
