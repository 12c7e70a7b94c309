"""Reads and writes lines of JSON, in which numbers that are not finite are words.

JSON has no infinity and no NaN, so they are written as the texts "inf", "-inf" and "nan". A text
that is itself such a word, as a label may be, gets a mark ``'`` before it. :func:`decode` turns the
words into numbers, removes the mark, and returns every other text unchanged.
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
_NUMBER_WORD = re.compile(r"'*(?:-?inf|nan)")
"""Matches a text that is the word of a number, with any marks before it."""
_MARK = "'"
_WORD_ENDINGS = ('inf"', 'nan"')
"""The endings of these words in JSON; a line without any of them has no such word."""
load = from_json
"""Returns the plain values of a JSON text.

Raises ValueError if the text is not JSON, or is nested too deeply.
"""


def is_json(line: bytes) -> bool:
    """Return whether a line is a complete JSON object."""
    try:
        return isinstance(load(line), dict)
    except ValueError:
        return False


def complete_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the content of every complete line of a file.

    A line is complete if it ends with a newline or is a JSON object. Blank lines are skipped. A
    file that does not exist has no lines.

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
    """Return whether a line may hold the word of a number, and so needs :func:`decode`."""
    return any(ending.encode() in line for ending in _WORD_ENDINGS)


def dump(value: Any) -> str:
    """Return a value as one line of JSON, without a newline.

    ``decode(load(line))`` returns the value again, as plain values (:func:`plain`).
    """
    # A value without such numbers and words is written directly, which is faster.
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a number that is not finite, an array or a path
        pass
    else:
        if not any(ending in line for ending in _WORD_ENDINGS):
            return line
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def plain_json(value: Any) -> str:
    """Return a value as JSON without marks, for readers that know which values are numbers."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def encode(value: Any) -> Any:
    """Return a value as :func:`plain` does, with a mark before each text that is a number word."""
    return _json_values(value, _MARK)


def plain(value: Any) -> Any:
    """Return a value as plain JSON values.

    Numbers that are not finite become "inf", "-inf" or "nan", arrays and tensors become lists, and
    paths become texts.
    """
    return _json_values(value, "")


def _json_values(value: Any, mark: str) -> Any:
    """Return plain JSON values, with ``mark`` before each text that is the word of a number."""
    if isinstance(value, Mapping):
        return {str(key): _json_values(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item, mark) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        if _NUMBER_WORD.fullmatch(value):
            return mark + value
        return value
    if hasattr(value, "tolist"):
        return _json_values(value.tolist(), mark)
    return json_number(value)


def decode(value: Any) -> Any:
    """Undo :func:`encode`: words become numbers again, and texts lose their marks."""
    if isinstance(value, str):
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if _NUMBER_WORD.fullmatch(value):
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
