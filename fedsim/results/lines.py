"""Rows and records as lines of JSON: numbers that are not finite are words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.words import json_number

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def is_json(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def dump(value: Any) -> str:
    """A value as one line of JSON, without the newline."""
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def encode(value: Any) -> Any:
    """Plain JSON values: not-finite numbers as "inf", "-inf", "nan"; arrays and tensors as lists; paths as strings."""
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
    """What is wrong with a line, in a few words each."""
    if isinstance(error, ValidationError):
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()][:3]
    return [str(error)]
