"""What an algorithm's claim is worth: ``proved`` is for what fedsim ships.

Any other class states a theorem that nobody here has proved, were it only that its loss is per example: ``stated``, and ``checked`` once a
full ``fedsim check`` of its code with the same parameters has passed. A check refutes and does not prove: what one found a fault in is
``heuristic``.
"""

from __future__ import annotations

from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.check_file import on_file
from fedsim.plugins.code_hash import is_shipped
from fedsim.privacy.plan import Claim

PROMISES: tuple[Claim, ...] = ("proved", "stated")
"""Claims of an algorithm's own that (epsilon, delta) is a theorem, which a check may refute."""
OWN = (*PROMISES, "heuristic", "none")
"""What an algorithm may claim itself; ``checked`` is fedsim's to say."""


def worth(claim: Claim, algorithm: Algorithm) -> Claim:
    """The claim that a row of ``algorithm`` may make where it makes ``claim`` itself.

    Raises:
        UserError: ``claim`` is no claim, or none that an algorithm makes itself.
    """
    if claim not in OWN:
        what = "is what fedsim says after a passed check" if claim == "checked" else "is none"
        raise UserError("claim", f"{claim!r} {what}", f"let claim() return one of {', '.join(OWN)}")
    if claim not in PROMISES:
        return claim
    filed = on_file(algorithm)
    if filed == "failed":
        return "heuristic"
    if is_shipped(type(algorithm)):
        return claim
    return "checked" if filed == "passed" else "stated"
