"""What an algorithm's claim is worth: ``proved`` is for what fedsim's own classes guarantee.

A plug-in that overrides nothing but :data:`HOOKS` inherits its base class's theorem. One that overrides more, itself or in a base class of
its own, states a theorem that nobody here has proved: ``stated``, and ``checked`` once a passed ``fedsim check`` of it is on file. A check
refutes and does not prove: what one on file found a fault in is ``heuristic``. That a loss is per example is its contract, which no
class can enforce, and which ``fedsim check`` and the rehearsal look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.check_file import on_file
from fedsim.methods.source_hash import is_shipped
from fedsim.privacy.plan import Claim

HOOKS = frozenset(
    {
        # the model and the loss per example, which the base class clips by itself
        *("build", "loss", "draws", "clip_weights", "local", "server_only"),
        # post-processing: what reads the server, the broadcast or released codes; not so ``pull``, which sees all clients of a cohort
        *("broadcast", "initial_server", "server_step", "public_terms", "generator", "classifier"),
        # names
        *("name", "source", "Params", "syntheses"),
    }
)
"""What a plug-in may override under a base class's guarantee. Everything else counts: clips, samples, noise, schedule, what stays with a
client (``start_clients``), what leaves it (``releases_codes``), what sees it (``diagnostics``, ``statistics``)."""

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
    return claim if is_guaranteed(algorithm) else "checked" if filed == "passed" else "stated"


def is_guaranteed(algorithm: Algorithm) -> bool:
    """Whether a class of fedsim answers for the algorithm's privacy: one that it differs from in :data:`HOOKS` alone."""
    cls = type(algorithm)
    bases = (base for base in cls.__mro__ if issubclass(base, Algorithm) and is_shipped(base))
    return any(not set(_differing(cls, base)) and not set(vars(algorithm)) & set(_rules(base)) for base in bases)


def _differing(cls: type[Algorithm], base: type[Algorithm]) -> Iterator[str]:
    """What ``cls`` has in place of ``base``'s own; units and trusts may be fewer, not more."""
    for name in _rules(base):
        own, theirs = _found(cls, name), _found(base, name)
        if name in ("units", "trusts") and set(own) <= set(theirs):
            continue
        if own is not theirs:
            yield name


def _rules(base: type) -> Iterator[str]:
    """Names of what a class has and no subclass may change under its guarantee."""
    names = {name for each in base.__mro__ for name in vars(each) if not name.startswith("__")}
    yield from sorted(names - HOOKS - {"_abc_impl"})


def _found(cls: type, name: str) -> Any:
    """A name as the first class that has it defines it, without binding."""
    return next(vars(each)[name] for each in cls.__mro__ if name in vars(each))
