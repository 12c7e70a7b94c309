"""The plan: how the privacy budget will be spent, solved once before the first step.

Two data sets are neighbours if one has one unit more than the other (add or remove one); the unit
is an example, a group of one client's examples (a patient's, a lesion's) or a client. A release is
a Gaussian mechanism on a Poisson sample of the units, whose noise has standard deviation
``relative_noise * sigma * sensitivity`` per coordinate. The composition of all steps of all
releases is (epsilon, delta)-DP by the theorems of :func:`fedsim.privacy.accountant.epsilon`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedsim.errors import UserError
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism, merged
from fedsim.privacy.selection import Selection

Unit = Literal["example", "group", "client"]
Trust = Literal["aggregate", "silo"]
Claim = Literal["proved", "stated", "heuristic", "none"]
"""How strong an (epsilon, delta) is, the strongest first: a theorem of a class that fedsim ships;
one by its author's word; not a theorem; no guarantee.
"""
THEOREMS: tuple[Claim, ...] = ("proved", "stated")
"""Claims that (epsilon, delta) is a theorem, which a check may refute."""

MOST_DELTA = 0.1
"""The largest delta of a budget: a larger one guarantees next to nothing."""


@dataclass(frozen=True)
class Release:
    """One kind of noisy release: ``steps`` runs of one mechanism.

    Attributes:
        name: unique within a plan.
        sample_rate: the public probability with which each unit is in a step's sample, in (0, 1].
        steps: how often it is released on a unit over the whole run, all rounds together.
        relative_noise: its noise multiplier in units of the plan's sigma; the ratio between
            releases is kept.
        per_round: steps in a round (local steps, each with noise of its own); divides ``steps``.
        main: whether a report draws its rounds as the training; false for a release before or after
            the training.
    """

    name: str
    sample_rate: float
    steps: int
    relative_noise: float = 1.0
    per_round: int = 1
    main: bool = True

    @property
    def mechanism(self) -> Mechanism:
        """All of it, at a sigma of 1."""
        return Mechanism(self.relative_noise, self.sample_rate, self.steps, self.name)

    @property
    def rounds(self) -> int:
        """How many rounds it takes."""
        return self.steps // self.per_round


@dataclass(frozen=True)
class PrivacyPlan:
    """A solved budget; see the module's text for the neighbouring relation.

    Attributes:
        epsilon_target: the requested epsilon; ``math.inf`` for no noise at all.
        delta: the delta of (epsilon, delta).
        unit: one example, one group of a client's examples, or one client; its presence is
            protected.
        trust: ``aggregate``: an adversary sees the sum over clients only; ``silo``: every single
            message.
        scope: which parameters are under the noise, in the algorithm's words.
        claim: whether (epsilon, delta) is a theorem for the algorithm.
        accountant: "prv" or "rdp"; "none" without noise.
        sigma: noise multiplier of a release with ``relative_noise`` 1: noise standard deviation
            over ``sensitivity``.
        releases: the noisy releases that the budget pays for.
        clip: C, the bound on a unit's L2 norm.
        sensitivity: L2 sensitivity of the noised sum to one unit, C or 2C.
        epsilon_reached: the cost of all releases together; at most ``epsilon_target``.
        selection: the training is one of several, of which the best is released: the cost is that
            of all; None: it is not.
    """

    epsilon_target: float
    delta: float
    unit: Unit
    trust: Trust
    scope: str
    claim: Claim
    accountant: str
    sigma: float
    releases: tuple[Release, ...]
    clip: float
    sensitivity: float
    epsilon_reached: float
    selection: Selection | None = None

    def mechanism(self, name: str) -> Mechanism:
        """The mechanism of the release called ``name``; its noise is 0 for an infinite epsilon."""
        return {release.name: release for release in self.releases}[name].mechanism.scaled(
            self.sigma
        )

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """Those of all releases that run."""
        return tuple(
            release.mechanism.scaled(self.sigma) for release in self.releases if release.steps
        )

    def noise_std(self, name: str) -> float:
        """The standard deviation of release ``name``'s noise per coordinate: noise multiplier times
        sensitivity.
        """
        multiplier = self.mechanism(name).noise_multiplier
        if multiplier:
            return multiplier * self.sensitivity
        return 0.0

    def noise_std_of_sum(self, name: str, clients: int) -> float:
        """The same for the sum over ``clients``: under ``trust: silo`` every client's noise is in
        it, else one draw.
        """
        return self.noise_std(name) * math.sqrt(clients if self.trust == "silo" else 1)


def large_delta(
    unit: str, delta: float, units: int, dataset: str, *, published: bool = False
) -> str | None:
    """Why a delta is too large for the data, None if it is not: publishing each unit with
    probability delta is (0, delta)-DP.

    Dwork & Roth 2014, "The algorithmic foundations of differential privacy", section 2.3: delta has
    to be far below 1 / n, n the number of ``units``: each an ``example``, a ``client``, or a group
    by its column. A text that may be ``published`` holds no number of units, which is an exact
    function of the data.
    """
    if delta * units < 1:
        return None
    words = {"example": ("training rows", "row"), "client": ("clients", "client")}
    all_, one = words.get(unit, (f"groups by {unit}", "group"))
    bound = f"1/n = {1 / units:.2g} for the {units} {all_} of {dataset}"
    if published:
        bound = f"1/n, where n is the number of {all_}"
    return (
        f"δ = {delta:g} is not below {bound}: such a δ would allow to publish a whole {one} "
        "outright; give a smaller delta"
    )


def calibrate(
    *,
    epsilon: float,
    delta: float,
    releases: Sequence[Release],
    unit: Unit,
    trust: Trust,
    scope: str,
    claim: Claim,
    clip: float,
    sensitivity: float,
) -> PrivacyPlan:
    """The plan with the least noise whose composition is (``epsilon``, ``delta``)-DP under
    add-or-remove-one.

    Sigma is solved for all steps of all releases at once, so that epsilon_reached is in [0.99, 1]
    of the target. It multiplies ``sensitivity`` (and each release's ``relative_noise``). Equal
    budgets are solved once. An infinite epsilon gives sigma 0, accountant and claim "none";
    ``claim`` is what holds if the noise is there. The rest is as :class:`PrivacyPlan` has it.
    """
    releases = tuple(releases)
    if len({release.name for release in releases}) < len(releases):
        raise ValueError(f"two releases of one name: {[release.name for release in releases]}")
    _check(epsilon, delta, releases, clip, sensitivity)
    if math.isinf(epsilon):
        sigma = 0.0
        reached = math.inf
        name = "none"
        claim = "none"
    else:
        sigma, reached, name = solved(
            float(epsilon), float(delta), merged(release.mechanism for release in releases)
        )
    return PrivacyPlan(
        epsilon_target=epsilon,
        delta=delta,
        unit=unit,
        trust=trust,
        scope=scope,
        claim=claim,
        accountant=name,
        sigma=sigma,
        releases=releases,
        clip=clip,
        sensitivity=sensitivity,
        epsilon_reached=reached,
    )


def _check(
    epsilon: float, delta: float, releases: tuple[Release, ...], clip: float, sensitivity: float
) -> None:
    if not epsilon > 0:
        raise UserError(
            "epsilon",
            f"{epsilon} is not a privacy budget",
            "give a positive number, or .inf for no noise",
        )
    if not 0 < delta < 1:
        raise UserError(
            "delta",
            f"{delta} is not in (0, 1)",
            "give a small probability, below 1 / (number of units)",
        )
    for release in releases:
        whole = (
            release.per_round >= 1 and release.steps >= 0 and release.steps % release.per_round == 0
        )
        if not (0 < release.sample_rate <= 1 and whole and 0 < release.relative_noise < math.inf):
            hint = (
                "give a sample rate in (0, 1], steps of whole rounds, and a positive relative noise"
            )
            raise UserError(f"release '{release.name}'", f"{release} cannot run", hint)
    if math.isinf(epsilon):
        return
    if not any(release.steps for release in releases):
        raise UserError(
            "epsilon",
            f"nothing to spend {epsilon} on: the plan has no step",
            "give at least one round and step",
        )
    never_sampled = sum(
        r.steps * math.log1p(-r.sample_rate) if r.sample_rate < 1 else -math.inf
        for r in releases
        if r.steps
    )
    if -math.expm1(never_sampled) <= delta:
        # such a delta holds with no noise at all, so no amount of noise spends the epsilon
        raise UserError(
            "delta",
            f"{delta:g} is above the chance that a unit is sampled at all",
            "give a smaller delta",
        )
    for name, value in (("clip", clip), ("sensitivity", sensitivity)):
        if not 0 < value < math.inf:
            own = (
                f"in a method of your own let {name}() return the norm to which a unit's part "
                "of a sum is clipped"
            )
            raise UserError(name, f"{value} is not a positive, finite number", f"give one; {own}")


Solution = tuple[float, float, str]
"""Noise multiplier, epsilon reached, accountant."""
SIGMA_MIN = 1e-3
SIGMA_MAX = 1e7
REACH = 0.999  # the search stops once this share of the target is used
RESOLUTION = 1e-4  # and in any case at this relative width of sigma
# of every sigma tried, so that it does not depend on the last bits of an accountant's sums, which
# vary by processor
SIGMA_DIGITS = 6


@lru_cache(maxsize=4096)
def solved(epsilon: float, delta: float, mechanisms: tuple[Mechanism, ...]) -> Solution:
    """The least noise for mechanisms whose noise multiplier is the relative one; kept, since it
    takes seconds.
    """

    def scaled(sigma: float) -> list[Mechanism]:
        return [one.scaled(sigma) for one in mechanisms]

    start = _bracket(lambda sigma: accountant.rough_epsilon(scaled(sigma), delta), epsilon, delta)
    return _tighten(lambda sigma: accountant.epsilon(scaled(sigma), delta), epsilon, start, delta)


def _bracket(rough: Callable[[float], float], target: float, delta: float) -> float:
    """The sigma, to 2 %, at which the cheap Rényi bound meets the target: a little more noise than
    needed.
    """
    low = SIGMA_MIN
    high = SIGMA_MAX
    if rough(high) > target:
        raise UserError(
            "epsilon",
            f"{target:g} is too small to account for at delta {delta:g}",
            "give a larger epsilon",
        )
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        if rough(middle) <= target:
            low = low
            high = middle
        else:
            low = middle
            high = high
    return high


def _tighten(
    spend: Callable[[float], tuple[float, str]], target: float, sigma: float, delta: float
) -> Solution:
    """The least sigma whose spend is at most the target: a bracket shrunk by log-log interpolation,
    then by halves.
    """
    enough: Solution | None = None  # the least noise known to keep the target
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
        if enough and (
            enough[1] >= REACH * target or (short and enough[0] <= short[0] * (1 + RESOLUTION))
        ):
            return enough
        sigma = _next(sigma, reached, target, enough, short, halve=tries > 8)
        if not SIGMA_MIN / 2 < sigma < SIGMA_MAX * 2:
            raise UserError(
                "epsilon",
                f"{target:g} at delta {delta:g} is reached by no noise multiplier in "
                f"[{SIGMA_MIN:g}, {SIGMA_MAX:g}]",
                "give a smaller delta, a smaller epsilon, or .inf for no noise",
            )


def _next(
    sigma: float,
    reached: float,
    target: float,
    enough: Solution | None,
    short: tuple[float, float] | None,
    halve: bool,
) -> float:
    """The next sigma to try: by the power law through the bracket's ends, or through one point with
    exponent -1.
    """
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
