"""What an algorithm may claim, and what checks in a run folder say of that.

``proved`` is for what fedsim ships and nobody changed. Any other class states a theorem that nobody here has proved, were it only that its
loss is per example: ``stated``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.errors import UserError
from fedsim.plugins.code_hash import SHIPPED, is_shipped
from fedsim.privacy.plan import Claim

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

Check = Literal["passed", "failed"]
"""How the check of a row's code, parameters, unit and trust ended."""


def allowed(claim: Claim, algorithm: Algorithm) -> Claim:
    """The claim that a plan of ``algorithm`` may make where it makes ``claim`` itself."""
    if claim not in get_args(Claim):
        raise UserError("claim", f"{claim!r} is not a claim", f"let claim() return one of {', '.join(get_args(Claim))}")
    return "stated" if claim == "proved" and not (is_shipped(type(algorithm)) and is_untouched(type(algorithm))) else claim


def is_untouched(cls: type) -> bool:
    """Whether every function of a shipped class and its bases is code of its own package, which whatever replaced one is not."""
    return all(
        _package(getattr(getattr(function, "__code__", None), "co_filename", "")) == base.__module__.partition(".")[0]
        for base in cls.__mro__
        if is_shipped(base)
        for function in (getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value))) for value in vars(base).values())
        if callable(function) and not isinstance(function, type)
    )


@lru_cache(maxsize=4096)
def _package(file: str) -> str | None:
    """The shipped package that a file is of."""
    return next((folder.name for folder in SHIPPED if Path(file).resolve().is_relative_to(folder)), None)


def may_leave(claim: Claim | None, check: Check | None) -> bool:
    """Whether a generator may be released under its epsilon: its theorem is proved, or stated and a full check found nothing."""
    return check != "failed" and (claim == "proved" or (claim == "stated" and check == "passed"))


def check_of(checks: Sequence[Mapping[str, Any]], unit: str, trust: str, params: Mapping[str, Any]) -> Check | None:
    """What checks of the same code, the oldest first, say of a row's parameters in its unit and trust.

    ``failed`` if these failed there, or others did and these have not passed; ``passed`` if these passed a full check there and failed in
    no other unit or trust. A quick check that passed says nothing. The last check of the same parameters, unit and trust counts.
    """
    last: dict[tuple[str, str, str], str] = {}
    for check in checks:
        if check["full"] or check["ended"] == "failed":
            last[check["unit"], check["trust"], _text(check["params"])] = check["ended"]
    here = {each: ended for (*setting, each), ended in last.items() if setting == [unit, trust]}
    own = _text(params)
    if here.get(own, "failed" if "failed" in here.values() else None) == "failed":
        return "failed"
    doubted = any(ended == "failed" and each == own for (*_, each), ended in last.items())
    return "passed" if here.get(own) == "passed" and not doubted else None


def _text(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
