"""How checks ended: a folder for the code of an algorithm, in it a file for every unit, trust and parameters that were checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from fedsim.atomic import replaced
from fedsim.data.cache import cache_folder
from fedsim.errors import UserError
from fedsim.plugins.code_hash import module_hash, source_hash

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

CHECK = "fedsim.evidence.check.check"
"""The module that runs the checks; another hash of it is another check."""


Ending = Literal["passed", "failed"]


class Checked(BaseModel):
    """A check that ended.

    Attributes:
        unit, trust: the setting.
        params: all parameters, as JSON.
        ended: how.
    """

    unit: str
    trust: str
    params: str
    ended: Ending


def on_file(algorithm: Algorithm) -> Literal["passed", "doubted", "failed"] | None:
    """What checks of this code on this machine say of the algorithm's parameters in its unit and trust; None where nothing.

    Returns:
        ``failed`` if these parameters failed, or others did and these have not passed; else ``doubted`` if these failed in another unit
        or trust; else ``passed`` if they did.
    """
    own, checks = _checked(algorithm, "passed"), list(_checks(algorithm))
    here = {each.params: each.ended for each in checks if (each.unit, each.trust) == (own.unit, own.trust)}
    ended = here.get(own.params, "failed" if "failed" in here.values() else None)
    if ended != "failed" and any((each.params, each.ended) == (own.params, "failed") for each in checks):
        return "doubted"
    return ended


def file_check(algorithm: Algorithm, ending: Ending) -> None:
    """Note that a full check of the algorithm has passed, or one that found a fault in its privacy; at once or not at all.

    Raises:
        UserError: fedsim's cache folder cannot be written.
    """
    own = _checked(algorithm, ending)
    path = _folder(algorithm) / f"{_digest(own.unit, own.trust, own.params)}.json"
    try:
        with replaced(path) as part:
            part.write_text(own.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(str(path.parent), f"cannot be written ({error.strerror})", "set FEDSIM_CACHE to another folder") from error


def _checked(algorithm: Algorithm, ending: Ending) -> Checked:
    params = json.dumps(algorithm.params.model_dump(mode="json"), sort_keys=True)
    return Checked(unit=algorithm.task.unit, trust=algorithm.task.trust, params=params, ended=ending)


def _checks(algorithm: Algorithm) -> Iterator[Checked]:
    """All of the algorithm's code; a file that cannot be read counts as none."""
    for path in _folder(algorithm).glob("*.json"):
        try:
            yield Checked.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            continue


def _folder(algorithm: Algorithm) -> Path:
    cls = type(algorithm)
    return cache_folder() / "checks" / _digest(cls.__qualname__, source_hash(cls), module_hash(CHECK))


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
