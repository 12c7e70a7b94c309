"""How checks ended: a file for every algorithm, privacy setting and mode of which ``fedsim check`` said something."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.atomic import replaced
from fedsim.data.cache import cache_folder
from fedsim.errors import UserError
from fedsim.methods.source_hash import module_hash, source_hash

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

CHECK = "fedsim.kit.check"
"""The module that runs the checks; another hash of it is another check."""


Ending = Literal["passed", "failed"]


def on_file(algorithm: Algorithm) -> Ending | None:
    """How the last check of this code, unit, trust and mode (parameters that are no numbers) on this machine ended; None where none did."""
    try:
        found = json.loads(_path(algorithm).read_bytes())
    except (OSError, ValueError):
        return None
    return next((ending for ending in get_args(Ending) if found == _checked(algorithm) | {"ended": ending}), None)


def file_check(algorithm: Algorithm, ending: Ending) -> None:
    """Note that a full check of the algorithm has passed, or one that found a fault in its privacy; at once or not at all.

    Raises:
        UserError: fedsim's cache folder cannot be written.
    """
    path = _path(algorithm)
    try:
        with replaced(path) as part:
            part.write_text(json.dumps(_checked(algorithm) | {"ended": ending}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(str(path.parent), f"cannot be written ({error.strerror})", "set FEDSIM_CACHE to another folder") from error


def _checked(algorithm: Algorithm) -> dict[str, Any]:
    """What was checked, as far as another cell has to have the same."""
    return {
        "algorithm": type(algorithm).__qualname__,
        "source": source_hash(type(algorithm)),
        "unit": algorithm.task.unit,
        "trust": algorithm.task.trust,
        "modes": _modes(algorithm.params.model_dump(mode="json")),
        "check": module_hash(CHECK),
    }


def _path(algorithm: Algorithm) -> Path:
    key = json.dumps(_checked(algorithm), sort_keys=True).encode()
    return cache_folder() / "checks" / f"{hashlib.sha256(key).hexdigest()[:16]}.json"


def _modes(value: Any) -> Any:
    """Parameters without their numbers: what is left are switches, words and missing values."""
    if isinstance(value, dict):
        return {key: _modes(each) for key, each in value.items() if not _is_number(each)}
    return [_modes(each) for each in value if not _is_number(each)] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
