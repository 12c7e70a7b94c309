"""What an algorithm may claim: ``proved`` is for what fedsim ships and nobody changed; ``checked`` is the word of checks in a run folder.

Any other class states a theorem that nobody here has proved, were it only that its loss is per example: ``stated``. How checks of its code
change that, and what they take back, is :func:`as_checked`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import UserError
from fedsim.plugins.code_hash import SHIPPED, is_shipped
from fedsim.privacy.plan import Claim

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

PROMISES: tuple[Claim, ...] = ("proved", "stated")
"""Claims of an algorithm's own that (epsilon, delta) is a theorem, which a check may refute."""
OWN = (*PROMISES, "heuristic", "none")
"""What an algorithm may claim itself; ``checked`` is fedsim's to say."""


def allowed(claim: Claim, algorithm: Algorithm) -> Claim:
    """The claim that a plan of ``algorithm`` may make where it makes ``claim`` itself.

    Raises:
        UserError: ``claim`` is no claim, or none that an algorithm makes itself.
    """
    if claim not in OWN:
        what = "is what fedsim says after a passed check" if claim == "checked" else "is none"
        raise UserError("claim", f"{claim!r} {what}", f"let claim() return one of {', '.join(OWN)}")
    return "stated" if claim == "proved" and not (is_shipped(type(algorithm)) and is_untouched(type(algorithm))) else claim


def is_untouched(cls: type) -> bool:
    """Whether every function of a shipped class and its bases is code of its own package, which whatever replaced one is not."""
    return all(
        _home(function) == base.__module__.partition(".")[0]
        for base in cls.__mro__
        if is_shipped(base)
        for function in (getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value))) for value in vars(base).values())
        if callable(function) and not isinstance(function, type)
    )


def _home(function: Any) -> str | None:
    """The shipped package whose file a function was compiled from."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    return _package(file) if isinstance(file, str) else None


@lru_cache(maxsize=4096)
def _package(file: str) -> str | None:
    path = Path(file).resolve()
    return next((folder.name for folder in SHIPPED if path.is_relative_to(folder)), None)


def as_checked(claim: Claim, checks: Sequence[Mapping[str, Any]], unit: str, trust: str, params: Mapping[str, Any]) -> Claim:
    """A plan's claim as checks of the same code have it: a check refutes and does not prove.

    ``heuristic`` if these parameters failed in this unit and trust, or others did and these have not passed; ``checked`` if it was stated,
    these parameters passed a full check there, and failed in no other unit or trust.

    Args:
        claim: the plan's.
        checks: result lines of checks of the code, the oldest first: the last one of the same parameters, unit and trust counts.
        unit: of the row.
        trust: of the row.
        params: all parameters of the row.
    """
    if claim not in PROMISES or not checks:
        return claim
    # a quick check that passed takes nothing back
    last = {_identity(check): check for check in checks if check["full"] or check["ended"] == "failed"}.values()
    here = {_params(check["params"]): check["ended"] for check in last if (check["unit"], check["trust"]) == (unit, trust)}
    own = _params(params)
    if here.get(own, "failed" if "failed" in here.values() else None) == "failed":
        return "heuristic"
    doubted = any(check["ended"] == "failed" and _params(check["params"]) == own for check in last)
    return "checked" if claim == "stated" and here.get(own) == "passed" and not doubted else claim


def _identity(check: Mapping[str, Any]) -> tuple[str, str, str]:
    return check["unit"], check["trust"], _params(check["params"])


def _params(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
