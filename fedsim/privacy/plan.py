"""The plan of a training: its noisy releases, and the noise that keeps the privacy budget.

It is solved once, before the first step. The unit of privacy is an example, a group of one client's
examples (such as those of a patient), or a client. Two data sets are neighbours if one of them has
one unit more (add or remove one). The number of clients is public, and it is the same in both data
sets: a client that is removed still counts, and contributes zero.

A release is a Gaussian mechanism: a sum over a Poisson sample of the units, plus noise. The noise
has the standard deviation ``relative_noise * sigma * sensitivity`` per coordinate. All steps of all
releases together are (epsilon, delta)-DP by the theorems that
:func:`fedsim.privacy.accountant.epsilon` names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedsim.errors import UserError
from fedsim.privacy import accountant
from fedsim.privacy.accountant import AccountantName
from fedsim.privacy.mechanism import Mechanism, merged
from fedsim.privacy.selection import Selection

Unit = Literal["example", "group", "client"]
"""What the budget protects: the presence of one example, one group or one client."""
Trust = Literal["aggregate", "silo"]
"""What an adversary sees: the sum over clients, or every single message."""
Claim = Literal["proved", "stated", "heuristic", "none"]
"""How strong the claim of an (epsilon, delta) is, the strongest first.

``proved``: it is a theorem, and fedsim ships the method unchanged. ``stated``: the method's author
states that it is a theorem. ``heuristic``: it is not a theorem. ``none``: there is no guarantee.
"""
THEOREMS: tuple[Claim, ...] = ("proved", "stated")
"""The claims which say that (epsilon, delta) is a theorem; a check may refute such a claim."""

MOST_DELTA = 0.1
"""The largest delta that a grid accepts; a larger one guarantees next to nothing."""


@dataclass(frozen=True)
class Release:
    """One kind of noisy release: ``steps`` runs of one mechanism.

    Attributes:
        name: the name of the release, unique within a plan.
        sample_rate: the public probability with which each unit is in a step's sample, in (0, 1].
        steps: the number of runs on a unit in all rounds together.
        relative_noise: the noise multiplier in units of the plan's sigma, which fixes the ratios of
            noise between releases.
        per_round: the number of steps in a round (local steps, each with its own noise). It must
            divide ``steps``.
        main: whether its rounds are rounds of the training, which reports draw; False for a release
            before or after the training.
    """

    name: str
    sample_rate: float
    steps: int
    relative_noise: float = 1.0
    per_round: int = 1
    main: bool = True

    @property
    def mechanism(self) -> Mechanism:
        """The mechanism of all its steps, at a sigma of 1."""
        return Mechanism(
            self.relative_noise,
            self.sample_rate,
            self.steps,
            self.name,
        )

    @property
    def rounds(self) -> int:
        """The number of rounds of the release."""
        return self.steps // self.per_round


@dataclass(frozen=True)
class PrivacyPlan:
    """A solved budget; the module's text defines when two data sets are neighbours.

    Attributes:
        epsilon_target: the requested epsilon; ``math.inf`` for no noise at all.
        delta: the delta of (epsilon, delta).
        unit: one example, one group of a client's examples, or one client; its presence is
            protected.
        trust: ``aggregate``: an adversary sees the sum over clients only; ``silo``: every single
            message.
        scope: the algorithm's word for the parameters that get noise.
        claim: how strong the claim of (epsilon, delta) is.
        accountant: which accountant computed ``epsilon_reached``; "none" without noise.
        sigma: the noise multiplier of a release with ``relative_noise`` 1, which is the standard
            deviation of its noise over ``sensitivity``.
        releases: the noisy releases that the budget pays for.
        clip: C, the bound on a unit's L2 norm.
        sensitivity: the L2 sensitivity of the sum to one unit, C or 2C.
        epsilon_reached: the cost of all releases together; at most ``epsilon_target``.
        selection: the private search over trainings, if the best one of several is released. Then
            ``epsilon_reached`` is the cost of the whole search. None without a search.
    """

    epsilon_target: float
    delta: float
    unit: Unit
    trust: Trust
    scope: str
    claim: Claim
    accountant: AccountantName
    sigma: float
    releases: tuple[Release, ...]
    clip: float
    sensitivity: float
    epsilon_reached: float
    selection: Selection | None = None

    @property
    def adds_noise(self) -> bool:
        """Whether there is any noise; for an infinite epsilon there is none."""
        return math.isfinite(self.epsilon_target)

    def mechanism(self, name: str) -> Mechanism:
        """Return the mechanism of release ``name``; its noise is 0 for an infinite epsilon."""
        by_name = {release.name: release for release in self.releases}
        return by_name[name].mechanism.scaled(self.sigma)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms of all releases that run."""
        return tuple(
            release.mechanism.scaled(self.sigma) for release in self.releases if release.steps
        )

    def noise_std(self, name: str) -> float:
        """Return the standard deviation of release ``name``'s noise per coordinate."""
        multiplier = self.mechanism(name).noise_multiplier
        # 0 times the infinite sensitivity of a sum without a clip norm would be NaN.
        if multiplier:
            return multiplier * self.sensitivity
        return 0.0

    def noise_std_of_sum(self, name: str, clients: int) -> float:
        """Return the standard deviation of the noise on the sum over ``clients``.

        Under ``trust: silo`` every client adds noise, otherwise there is one draw.
        """
        draws = clients if self.trust == "silo" else 1
        return self.noise_std(name) * math.sqrt(draws)


def large_delta(
    unit: str,
    delta: float,
    units: int,
    dataset: str,
    *,
    published: bool = False,
) -> str | None:
    """Return the reason why a delta is too large for the data, or None if it is not.

    Publishing each unit with probability delta is (0, delta)-DP, so delta has to be far below 1 / n
    for n units (Dwork & Roth 2014, "The algorithmic foundations of differential privacy", section
    2.3).

    Args:
        unit: ``example``, ``client``, or the column of a group.
        delta: the delta.
        units: n, the number of units.
        dataset: the name of the data set.
        published: whether the text will be published. Then it leaves out n, which is an exact
            function of the data.
    """
    if delta * units < 1:
        return None
    words = {"example": ("training rows", "row"), "client": ("clients", "client")}
    plural, singular = words.get(
        unit,
        (f"groups by {unit}", "group"),
    )
    bound = f"1/n = {1 / units:.2g} for the {units} {plural} of {dataset}"
    if published:
        bound = f"1/n, where n is the number of {plural}"
    return (
        f"δ = {delta:g} is not below {bound}: such a δ would allow a method to publish a whole "
        f"{singular}; give a smaller delta"
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
    """Return a plan that is (``epsilon``, ``delta``)-DP with hardly more noise than it needs.

    Sigma is solved for all steps of all releases together. The plan's epsilon is at most the
    target. It is at least 0.99 of the target, unless the accountant changes from "prv" to "rdp"
    just below the target. Equal budgets are solved once. For an infinite epsilon, sigma is 0, and
    the accountant and the claim are "none".

    Args:
        epsilon: the target; ``math.inf`` for no noise.
        delta: in (0, 1).
        releases: the noisy releases that the budget pays for.
        unit: the unit whose presence is protected.
        trust: what an adversary sees.
        scope: a word of the algorithm for the parameters that get noise.
        claim: how strong the guarantee is if there is noise.
        clip: C, the bound on a unit's L2 norm.
        sensitivity: the L2 sensitivity of the sum to one unit, C or 2C.

    Raises:
        ValueError: two releases have the same name.
        UserError: a value is out of range, or no noise reaches the budget.
    """
    releases = tuple(releases)
    names = [release.name for release in releases]
    if len(set(names)) < len(names):
        raise ValueError(f"two releases of one name: {names}")
    _check_budget(epsilon, delta)
    for release in releases:
        _check_release(release)
    if math.isinf(epsilon):
        sigma = 0.0
        reached = math.inf
        name: AccountantName = "none"
        claim = "none"
    else:
        _check_spending(epsilon, delta, releases)
        _check_positive("clip", clip)
        _check_positive("sensitivity", sensitivity)
        relative = merged(release.mechanism for release in releases)
        sigma, reached, name = solved(
            float(epsilon),
            float(delta),
            relative,
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


def _check_budget(epsilon: float, delta: float) -> None:
    """Raise UserError if epsilon or delta is out of range."""
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


def _check_release(release: Release) -> None:
    """Raise UserError if a release cannot run."""
    has_rate = 0 < release.sample_rate <= 1
    has_noise = 0 < release.relative_noise < math.inf
    has_whole_rounds = (
        release.per_round >= 1 and release.steps >= 0 and release.steps % release.per_round == 0
    )
    if not (has_rate and has_noise and has_whole_rounds):
        raise UserError(
            f"release '{release.name}'",
            f"{release} cannot run",
            "give a sample rate in (0, 1], steps of whole rounds, and a positive relative noise",
        )


def _check_spending(
    epsilon: float,
    delta: float,
    releases: tuple[Release, ...],
) -> None:
    """Raise UserError if there is no step, or the budget holds without noise."""
    running = [release for release in releases if release.steps]
    if not running:
        raise UserError(
            "epsilon",
            f"nothing to spend {epsilon} on: the plan has no step",
            "give at least one round and step",
        )
    log_never_sampled = sum(_log_never_sampled(release) for release in running)
    if -math.expm1(log_never_sampled) <= delta:
        # With probability 1 - delta no sample has the unit. So (0, delta)-DP holds without noise,
        # and there is no sigma that spends epsilon.
        raise UserError(
            "delta",
            f"{delta:g} is not below the chance that a unit is sampled at all",
            "give a smaller delta",
        )


def _log_never_sampled(release: Release) -> float:
    """Return the log probability that a unit is in no sample of a release."""
    if release.sample_rate < 1:
        return release.steps * math.log1p(-release.sample_rate)
    return -math.inf


def _check_positive(name: str, value: float) -> None:
    """Raise UserError if the value of ``clip`` or ``sensitivity`` is not positive and finite."""
    if not 0 < value < math.inf:
        raise UserError(name, f"{value} is not a positive, finite number", _BOUND_HINTS[name])


_BOUND_HINTS = {
    "clip": "give the parameter clip a positive number; in a method of your own, clip() returns "
    "the largest norm that one unit can add to a sum",
    "sensitivity": "in a method of your own, sensitivity() returns the largest change that one "
    "unit can cause in a sum",
}
"""What to do about a bound that is not positive and finite, by its name."""
Solution = tuple[float, float, AccountantName]
"""The noise multiplier, the epsilon that it reaches, and the accountant."""
SIGMA_MIN = 1e-3
"""The smallest noise multiplier that is tried."""
SIGMA_MAX = 1e7
"""The largest noise multiplier that is tried."""
REACH = 0.999
"""The share of the target epsilon at which the search stops."""
RESOLUTION = 1e-4
"""The relative width of the bracket of sigma at which the search stops in any case."""
SIGMA_DIGITS = 6
"""The number of digits of every sigma that is tried.

Sigma then does not depend on the last bits of an accountant's sums, which vary by processor.
"""


@lru_cache(maxsize=4096)
def solved(
    epsilon: float,
    delta: float,
    mechanisms: tuple[Mechanism, ...],
) -> Solution:
    """Return a sigma at which ``mechanisms`` cost at most ``epsilon``, and little less.

    The result is cached, because the search takes seconds.

    Args:
        epsilon: the target, finite.
        delta: in (0, 1).
        mechanisms: what runs, with their noise multipliers in units of sigma.
    """

    def scaled(sigma: float) -> list[Mechanism]:
        return [mechanism.scaled(sigma) for mechanism in mechanisms]

    def rough(sigma: float) -> float:
        return accountant.rough_epsilon(scaled(sigma), delta)

    def exact(sigma: float) -> tuple[float, AccountantName]:
        return accountant.epsilon(scaled(sigma), delta)

    if rough(SIGMA_MAX) > epsilon:
        raise _too_small(epsilon, delta)
    # The fast Rényi bound needs a little more noise than is necessary.
    start = accountant.least_noise(
        lambda sigma: rough(sigma) <= epsilon, SIGMA_MIN, SIGMA_MAX, ratio=1.02
    )
    return _tighten(exact, epsilon, start, delta)


def _tighten(
    spend: Callable[[float], tuple[float, AccountantName]],
    target: float,
    sigma: float,
    delta: float,
) -> Solution:
    """Return a sigma whose epsilon is at most the target, and hardly below it.

    The bracket is the interval between the largest sigma known to exceed the target and the
    smallest known to keep it. Log-log interpolation narrows it, and halving after eight tries. The
    search ends at :data:`REACH` of the target, or when the bracket is :data:`RESOLUTION` wide.

    Args:
        spend: returns the epsilon and the accountant at a sigma.
        target: the target epsilon.
        sigma: the first sigma to try.
        delta: in (0, 1), for the error message.
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
        if enough:
            is_narrow = short is not None and enough[0] <= short[0] * (1 + RESOLUTION)
            if is_narrow or enough[1] >= REACH * target:
                return enough
        sigma = _next_sigma(
            sigma,
            reached,
            target,
            enough,
            short,
            halve=tries > 8,
        )
        if sigma >= SIGMA_MAX * 2:
            # An accountant's error does not shrink with the noise, so it may exceed a small target.
            raise _too_small(target, delta)
        if sigma <= SIGMA_MIN / 2:
            raise UserError(
                "epsilon",
                f"{target:g} at delta {delta:g} is too large: even the smallest noise multiplier, "
                f"{SIGMA_MIN:g}, spends less",
                "give a smaller epsilon; a grid may say .inf for no noise",
            )


def _too_small(epsilon: float, delta: float) -> UserError:
    """Return the error for an epsilon that is too small for the accountants at any sigma."""
    return UserError(
        "epsilon",
        f"{epsilon:g} is too small to account for at delta {delta:g}",
        "give a larger epsilon",
    )


def _next_sigma(
    sigma: float,
    reached: float,
    target: float,
    enough: Solution | None,
    short: tuple[float, float] | None,
    halve: bool,
) -> float:
    """Return the next sigma to try.

    It interpolates in the bracket, where log epsilon is about linear in log sigma. With only one
    end of the bracket it assumes that epsilon is proportional to 1 / sigma.
    """
    aim = (1 + REACH) / 2 * target
    if enough is None or short is None:
        step = min(max(reached / aim, 0.5), 2.0)
        # Always move, and away from the side that is already known.
        step = max(step, 1.01) if enough is None else min(step, 0.99)
        return sigma * step
    enough_sigma, enough_epsilon, _ = enough
    short_sigma, short_epsilon = short
    share = 0.5
    if not halve and enough_epsilon > 0 and math.isfinite(short_epsilon):
        share = math.log(short_epsilon / aim) / math.log(short_epsilon / enough_epsilon)
    log_width = math.log(enough_sigma / short_sigma)
    return short_sigma * math.exp(log_width * min(max(share, 0.05), 0.95))
