"""What an algorithm may claim of its privacy, and what checks in a run folder say of that claim.

``proved`` is for what fedsim ships and nobody changed. Any other class states a theorem that nobody
here has proved, if only because its loss may not be per example: its claim is ``stated``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedsim.errors import UserError
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.untouched import is_untouched
from fedsim.privacy.plan import Claim

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

NUMBERS_OF_STEPS = ("rounds", "local_steps", "meta_steps", "generator_steps")
"""Parameters that say how often something is done; a check may do it less often."""
Check = Literal["passed", "failed"]
"""How the check of a result's code, parameters, unit and trust ended."""


def allowed(claim: Claim, algorithm: Algorithm) -> Claim:
    """Return the claim that a plan may make if its algorithm makes ``claim``.

    A shipped class may only state its theorem if somebody replaced shipped code.

    Raises:
        UserError: ``claim`` is not a claim.
    """
    if claim not in get_args(Claim):
        raise UserError(
            "claim",
            f"{claim!r} is not a claim",
            "let claim() return 'stated' if its ε is a theorem that you have proved, 'heuristic' "
            "if it is none, or 'none' without privacy ('proved' is for methods of fedsim)",
        )
    cls = type(algorithm)
    if claim == "proved" and not (is_shipped(cls) and is_untouched(cls)):
        return "stated"
    return claim


def may_leave(
    claim: Claim | None,
    check: Check | None,
) -> bool:
    """Return whether a generator may be released under its ε.

    Its theorem must be proved; or it must be stated, and a full check must have found nothing.
    """
    if check == "failed":
        return False
    return claim == "proved" or (claim == "stated" and check == "passed")


def check_of(
    checks: Sequence[Mapping[str, Any]], unit: str, trust: str, params: Mapping[str, Any]
) -> Check | None:
    """Return what checks of the same code say of parameters in a unit and trust.

    The result is ``passed`` if these parameters passed a full check there; but None if they failed
    in another unit or trust. Without a passed check it is ``failed`` if any check failed, else
    None. Of several checks of the same parameters, unit and trust the last one counts.

    Args:
        checks: lines of checks of the code, the oldest first.
        unit: the unit of the result.
        trust: the trust of the result.
        params: the parameters of the result. They are compared with those that a check tried,
            except for :data:`NUMBERS_OF_STEPS`.
    """
    last: dict[str, dict[tuple[str, str], Check]] = defaultdict(dict)
    for check in checks:
        setting = (check["unit"], check["trust"])
        asked = _text_of(check["params"])
        tried = _text_of(check.get("tried", check["params"]))
        if check["ended"] == "failed":
            last[asked][setting] = "failed"
            last[tried][setting] = "failed"
        # A quick check that passed says nothing, nor does one that does not say what it tried.
        elif check["full"] and "tried" in check:
            last[tried][setting] = "passed"
    of_params = last[_text_of(params)]
    if of_params.get((unit, trust)) == "passed":
        return None if "failed" in of_params.values() else "passed"
    if any("failed" in results.values() for results in last.values()):
        return "failed"
    return None


def is_of(check: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Return whether a line of a check is about the class of a cell.

    Classes of one file have one source. A file is given by any path that leads to it, so that only
    the names of the classes after it are compared.
    """
    same_class = class_name(check["algorithm"]) == class_name(cell["algorithm"])
    return same_class and bool(check["source"] == cell["source"])


def class_name(algorithm: str) -> str:
    """Return the name of a class in its file, ``FILE:CLASS``; or the name of a shipped method."""
    return algorithm.rpartition(":")[2]


def compared(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a check of a result must have tried: all but numbers of steps."""
    return {name: value for name, value in params.items() if name not in NUMBERS_OF_STEPS}


def _text_of(params: Mapping[str, Any]) -> str:
    """Return the compared parameters as a text that is equal for equal parameters."""
    return json.dumps(compared(params), sort_keys=True)
