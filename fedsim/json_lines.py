"""Rows and records as lines of JSON: numbers that are not finite are words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from fedsim.errors import UserError
from fedsim.files import unread
from fedsim.words import json_number

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
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


def dump(value: Any) -> str:
    """A value as one line of JSON, without the newline."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a number that is not finite, an array or a path
        return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def encode(value: Any) -> Any:
    """Plain JSON values: not-finite numbers as "inf", "-inf", "nan"; arrays and tensors as lists;
    paths as strings.
    """
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return encode(value.tolist()) if hasattr(value, "tolist") else json_number(value)


def decode(value: Any) -> Any:
    """What :func:`encode` was given, as far as plain values go."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def reasons(error: Exception) -> list[str]:
    """What is wrong with a line: at most three short reasons."""
    if isinstance(error, ValidationError):
        return [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ")
            for item in error.errors()
        ][:3]
    return [str(error)]
