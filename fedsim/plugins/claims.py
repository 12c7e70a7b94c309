"""What an algorithm may claim, and what checks in a run folder say of that.

``proved`` is for what fedsim ships and nobody changed. Any other class states a theorem that nobody
here has proved, were it only that its loss is per example: ``stated``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.errors import UserError
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.untouched import is_untouched
from fedsim.privacy.plan import Claim

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

NUMBERS_OF_STEPS = ("rounds", "local_steps", "meta_steps", "generator_steps")
"""Parameters that say how often something is done: a check may do it less often."""
Check = Literal["passed", "failed"]
"""How the check of a row's code, parameters, unit and trust ended."""


def allowed(claim: Claim, algorithm: Algorithm) -> Claim:
    """The claim of a plan of an ``algorithm`` that claims it.

    A shipped class states it, as any other, where somebody replaced code that is shipped.
    """
    if claim not in get_args(Claim):
        raise UserError(
            "claim",
            f"{claim!r} is not a claim",
            f"let claim() return one of {', '.join(get_args(Claim))}",
        )
    untouched = is_shipped(type(algorithm)) and is_untouched(type(algorithm))
    if claim == "proved" and not untouched:
        return "stated"
    return claim


def may_leave(claim: Claim | None, check: Check | None) -> bool:
    """Whether a generator may be released under its epsilon: its theorem is proved, or stated and a
    full check found nothing.
    """
    return check != "failed" and (claim == "proved" or (claim == "stated" and check == "passed"))


def check_of(
    checks: Sequence[Mapping[str, Any]], unit: str, trust: str, params: Mapping[str, Any]
) -> Check | None:
    """What checks of the same code, the oldest first, say of a row's parameters in its unit and
    trust; the last of the same three counts.

    Parameters are compared as they were tried, but for :data:`NUMBERS_OF_STEPS`. ``passed`` if
    these passed a full check there, and failed in no other unit or trust; else ``failed`` if any
    check failed.
    """
    last: dict[tuple[str, str, str], str] = {}
    for check in checks:
        asked = _text(compared(check["params"]))
        tried = _text(compared(check.get("tried", check["params"])))
        if check["ended"] == "failed":
            for params_text in (asked, tried):
                last[params_text, check["unit"], check["trust"]] = "failed"
        # a quick check that passed says nothing, nor does one that does not say what it tried
        elif check["full"] and "tried" in check:
            last[tried, check["unit"], check["trust"]] = "passed"
    own = _text(compared(params))
    if last.get((own, unit, trust)) == "passed":
        if any(ended == "failed" for (each, *_), ended in last.items() if each == own):
            return None
        return "passed"
    if "failed" in last.values():
        return "failed"
    return None


def compared(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a check must have tried to be of a row: all but numbers of steps."""
    return {name: value for name, value in params.items() if name not in NUMBERS_OF_STEPS}


def _text(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
