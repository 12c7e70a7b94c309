"""The noise that a budget pays for: the least noise multiplier that keeps it, solved once a machine.

Solutions are kept on disk, since they take seconds. A file is no proof: a training's ledger counts what was spent, with the accountant, and
a row that spent more than its target is ``overspent``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path

from fedsim.errors import UserError
from fedsim.files import cache_folder, replaced
from fedsim.privacy import accountant
from fedsim.privacy.accountant import counted_by
from fedsim.privacy.mechanism import Mechanism

Solution = tuple[float, float, str]
"""Noise multiplier, epsilon reached, accountant."""
SIGMA_MIN, SIGMA_MAX = 1e-3, 1e7
REACH = 0.999  # the search stops once this share of the target is used
RESOLUTION = 1e-4  # and in any case at this relative width of sigma
SIGMA_DIGITS = 6  # of every sigma tried, so that it does not depend on the last bits of an accountant's sums, which vary by processor


@lru_cache(maxsize=4096)
def solved(epsilon: float, delta: float, mechanisms: tuple[Mechanism, ...]) -> Solution:
    """The least noise for mechanisms whose noise multiplier is the relative one, from its file if this code solved it before.

    If the folder cannot be written, it is only slower.
    """
    question = json.dumps([counted_by(), epsilon, delta, [astuple(one) for one in mechanisms]])
    path = cache_folder() / "plans" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    if (stored := _read(path, epsilon)) is not None:
        return stored
    solution = _solve(epsilon, delta, mechanisms)
    try:
        with replaced(path) as part:
            part.write_text(json.dumps(solution) + "\n", encoding="utf-8")
    except OSError:
        pass
    return solution


def _read(path: Path, epsilon: float) -> Solution | None:
    """The solution in a file; None if there is no file, or its content cannot be a solution."""
    try:
        sigma, reached, name = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    numbers = isinstance(sigma, float) and isinstance(reached, float) and math.isfinite(sigma)
    return (sigma, reached, name) if numbers and sigma > 0 and 0 <= reached <= epsilon and name in ("prv", "rdp") else None


def _solve(epsilon: float, delta: float, mechanisms: tuple[Mechanism, ...]) -> Solution:
    """(sigma, epsilon reached, accountant) for mechanisms whose noise multiplier is the relative one."""

    def scaled(sigma: float) -> list[Mechanism]:
        return [one.scaled(sigma) for one in mechanisms]

    start = _bracket(lambda sigma: accountant.rough_epsilon(scaled(sigma), delta), epsilon, delta)
    return _tighten(lambda sigma: accountant.epsilon(scaled(sigma), delta), epsilon, start, delta)


def _bracket(rough: Callable[[float], float], target: float, delta: float) -> float:
    """The sigma, to 2 %, at which the cheap Rényi bound meets the target: a little more noise than needed."""
    low, high = SIGMA_MIN, SIGMA_MAX
    if rough(high) > target:
        raise UserError("epsilon", f"{target:g} is too small to account for at delta {delta:g}", "give a larger epsilon")
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rough(middle) <= target else (middle, high)
    return high


def _tighten(spend: Callable[[float], tuple[float, str]], target: float, sigma: float, delta: float) -> tuple[float, float, str]:
    """The least sigma whose spend is at most the target: a bracket shrunk by log-log interpolation, then by halves."""
    enough: tuple[float, float, str] | None = None  # the least noise known to keep the target
    short: tuple[float, float] | None = None  # the most noise known to break it
    tries = 0
    while True:
        sigma = float(f"{sigma:.{SIGMA_DIGITS}g}")
        reached, name = spend(sigma)
        tries += 1
        if reached <= target:
            enough = (sigma, reached, name)
        else:
            short = (sigma, reached)
        if enough and (enough[1] >= REACH * target or (short and enough[0] <= short[0] * (1 + RESOLUTION))):
            return enough
        sigma = _next(sigma, reached, target, enough, short, halve=tries > 8)
        if not SIGMA_MIN / 2 < sigma < SIGMA_MAX * 2:
            raise UserError(
                "epsilon",
                f"{target:g} at delta {delta:g} is reached by no noise multiplier in [{SIGMA_MIN:g}, {SIGMA_MAX:g}]",
                "give a smaller delta, a smaller epsilon, or .inf for no noise",
            )


def _next(
    sigma: float,
    reached: float,
    target: float,
    enough: tuple[float, float, str] | None,
    short: tuple[float, float] | None,
    halve: bool,
) -> float:
    """The next sigma to try: by the power law through the bracket's ends, or through one point with exponent -1."""
    aim = (1 + REACH) / 2 * target
    if not (enough and short):
        step = min(max(reached / aim, 0.5), 2.0)
        # always move, and away from the side already known
        return sigma * (min(step, 0.99) if enough else max(step, 1.01))
    share = 0.5
    if not halve and enough[1] > 0 and math.isfinite(short[1]):
        share = math.log(short[1] / aim) / math.log(short[1] / enough[1])
    ratio = enough[0] / short[0]
    return short[0] * math.exp(math.log(ratio) * min(max(share, 0.05), 0.95))
