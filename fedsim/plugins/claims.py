"""Which privacy claim an algorithm may make, and how checks in a run folder confirm or refute it.

Only code that fedsim ships and nobody changed may claim ``proved``. For any other class fedsim has
no proof; for example, its loss may mix examples. The strongest claim of such a class is ``stated``.
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
"""Parameters that are numbers of steps; a check may use smaller numbers."""
Check = Literal["passed", "failed"]
"""The outcome of the checks of a result's code, parameters, unit and trust."""


def allowed(claim: Claim, algorithm: Algorithm) -> Claim:
    """Return the claim that a plan may make if its algorithm makes ``claim``.

    It is ``claim``, but ``proved`` becomes ``stated`` if fedsim does not ship the class or if
    somebody replaced shipped code.

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

    The claim must be ``proved``, or ``stated`` with a passed check. After a failed check no
    generator may be released.

    Args:
        claim: the claim of its plan; None without a plan.
        check: the result of :func:`check_of`; None if no check counts.
    """
    if check == "failed":
        return False
    return claim == "proved" or (claim == "stated" and check == "passed")


def check_of(
    checks: Sequence[Mapping[str, Any]], unit: str, trust: str, params: Mapping[str, Any]
) -> Check | None:
    """Return the combined result of checks of the same code, for one setting of parameters.

    The result is

    - ``passed`` if these parameters passed a full check in this unit and trust, and failed in none;
    - None if they passed there, but failed in another unit or trust;
    - ``failed`` if they did not pass there, and any check of the code failed;
    - None otherwise.

    If several checks have the same parameters, unit and trust, the last one counts.

    Args:
        checks: lines of checks of the code, the oldest first.
        unit: the unit of the result.
        trust: the trust of the result.
        params: the parameters of the result. They are compared with those that a check tried,
            except for :data:`NUMBERS_OF_STEPS`.
    """
    # By parameters, then by unit and trust: the last result.
    last_results: dict[str, dict[tuple[str, str], Check]] = defaultdict(dict)
    for check in checks:
        unit_and_trust = (check["unit"], check["trust"])
        requested = _text_of(check["params"])
        tried = _text_of(check.get("tried", check["params"]))
        if check["ended"] == "failed":
            last_results[requested][unit_and_trust] = "failed"
            last_results[tried][unit_and_trust] = "failed"
        # A check that passed counts only if it was a full one and recorded what it tried.
        elif check["full"] and "tried" in check:
            last_results[tried][unit_and_trust] = "passed"
    of_params = last_results[_text_of(params)]
    if of_params.get((unit, trust)) == "passed":
        return None if "failed" in of_params.values() else "passed"
    if any("failed" in results.values() for results in last_results.values()):
        return "failed"
    return None


def is_of(check: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Return whether a line of a check is about the class of a cell.

    The hash of the source and the name of the class must be equal. Paths of files are not compared,
    because several paths may lead to the same file.
    """
    same_class = class_name(check["algorithm"]) == class_name(cell["algorithm"])
    return same_class and bool(check["source"] == cell["source"])


def class_name(algorithm: str) -> str:
    """Return ``CLASS`` of an algorithm ``FILE:CLASS``, or the name of a shipped method as it is."""
    return algorithm.rpartition(":")[2]


def compared(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters without numbers of steps: a check must have tried these values."""
    return {name: value for name, value in params.items() if name not in NUMBERS_OF_STEPS}


def _text_of(params: Mapping[str, Any]) -> str:
    """Return the compared parameters as JSON; equal parameters give equal texts."""
    return json.dumps(compared(params), sort_keys=True)
