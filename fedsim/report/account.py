"""A budget without data: its noise, what is spent after every round, and what an adversary can then tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedsim.errors import UserError
from fedsim.grid.complaints import translated
from fedsim.grid.places import Loc, Origin
from fedsim.grid.yaml import parse, read_text
from fedsim.privacy.plan import MOST_DELTA, PrivacyPlan, Release, Unit, calibrate
from fedsim.privacy.pld import Composition, Floats, Spectra

MOST_ROUNDS = 1000
"""So many rounds are accounted one by one; of more, so many that are evenly spaced."""
ROUNDS_SHOWN = 16
"""So many rounds, denser at the beginning, are printed."""
DELTAS = np.logspace(-2, -8, 25)
FALSE_POSITIVES = np.concatenate([[0.0, 1e-4, 1e-3], np.linspace(0.01, 1.0, 100)])


class ReleaseSettings(BaseModel):
    """A kind of release, as a file of releases gives it.

    Attributes:
        name: what is released.
        rounds: how many rounds it takes.
        steps: noisy steps of a round, each with noise of its own.
        sample_rate: the probability with which each unit is in a step.
        relative_noise: its noise multiplier in units of the plan's sigma.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rounds: int = Field(1, ge=1)
    steps: int = Field(1, ge=1)
    sample_rate: float = Field(1.0, gt=0, le=1)
    relative_noise: float = Field(1.0, gt=0)

    @property
    def release(self) -> Release:
        """As a plan has it."""
        return Release(self.name, self.sample_rate, self.rounds * self.steps, self.relative_noise, self.steps)


@dataclass(frozen=True)
class Spent:
    """What the rounds up to one have spent."""

    round: int
    release: str
    epsilon: float


@dataclass(frozen=True)
class Budget:
    """A budget and what follows from it.

    Attributes:
        plan: what a grid with the same settings would run.
        notes: what the settings do not change, in words.
        rounds: what is spent after every round.
        shown: some of them.
        next: the same after one more round of the last release, with the same noise.
        composition: all rounds, as an adversary sees them.
    """

    plan: PrivacyPlan
    notes: tuple[str, ...]
    rounds: tuple[Spent, ...]
    shown: tuple[Spent, ...]
    next: Spent
    composition: Composition

    def epsilons(self) -> Floats:
        """Epsilon at each of :data:`DELTAS`."""
        return np.array([self.composition.epsilon(delta) for delta in DELTAS])

    def false_negatives(self) -> Floats:
        """The trade-off function at each of :data:`FALSE_POSITIVES`."""
        return self.composition.false_negatives(FALSE_POSITIVES)


def account(
    epsilon: float,
    delta: float,
    releases: Sequence[Release],
    *,
    unit: Unit = "example",
    notes: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Budget:
    """Solve a budget as a grid would, and follow it round by round; ``tell`` receives the progress in words.

    Raises:
        UserError: no noise reaches the target, or it is infinite.
    """
    if math.isinf(epsilon):
        raise UserError("--epsilon", "an infinite budget has no noise and no curve", "give a positive number")
    tell("solving for the noise")
    plan = calibrate(
        epsilon=epsilon,
        delta=delta,
        releases=releases,
        unit=unit,
        trust="aggregate",
        scope="what is released",
        claim="stated",
        clip=1.0,
        sensitivity=1.0,
    )
    schedule = [(i, n) for i, release in enumerate(plan.releases) for n in range(1, release.rounds + 1)]
    total, last = len(schedule), plan.releases[-1]
    # room for the one more round
    *others, final = plan.mechanisms
    spectra = Spectra([*others, final.times(final.count + last.per_round)])
    schedule.append((len(plan.releases) - 1, last.rounds + 1))
    tell("composing its rounds")

    def spent(number: int) -> Spent:
        tell(f"accounting round {min(number, total)} of {total}")
        at, n = schedule[number - 1]
        steps = [r.steps if i < at else r.per_round * n if i == at else 0 for i, r in enumerate(plan.releases)]
        return Spent(number, plan.releases[at].name, spectra.compose(steps).epsilon(delta))

    numbers = {round(x) for x in np.linspace(1, total, min(total, MOST_ROUNDS))}
    # the cost grows as the square root of the rounds
    shown = {round(total * share**2) for share in np.linspace(total**-0.5, 1, min(total, ROUNDS_SHOWN))}
    rounds = tuple(spent(number) for number in sorted(numbers | shown))
    return Budget(
        plan,
        tuple(notes),
        rounds,
        tuple(after for after in rounds if after.round in shown),
        spent(total + 1),
        spectra.compose([release.steps for release in plan.releases]),
    )


def settings(
    *,
    rounds: int | None,
    sample_rate: float | None,
    unit: str,
    clients: int | None,
    client_rate: float | None,
    delta: float,
    releases: Path | str | Sequence[Mapping[str, Any]] | None,
) -> tuple[tuple[Release, ...], Unit, tuple[str, ...]]:
    """The releases that the options of a command line describe, the unit, and what is to be said of them.

    Raises:
        UserError: an option does not do or does not go with another.
    """
    checked: Unit | None = next((known for known in get_args(Unit) if known == unit), None)
    if checked is None:
        raise UserError("--unit", f"unknown value '{unit}'", f"give {' or '.join(get_args(Unit))}")
    if delta > MOST_DELTA:
        raise UserError("--delta", f"{delta:g} is above {MOST_DELTA:g}", "give far less than 1 / units")
    if checked == "client":
        rate, option, notes = client_rate, "--client-rate", tuple(_notes_on_clients(clients, client_rate, sample_rate, delta))
    else:
        _refuse_clients(checked, clients, client_rate)
        rate, option, notes = sample_rate, "--sample-rate", ()
    if releases is not None:
        if rounds is not None or rate is not None:
            given = "--rounds" if rounds is not None else option
            raise UserError(given, "the file of --releases says that already", f"leave out {given} or --releases")
        return read_releases(releases), checked, notes
    if rounds is None:
        raise UserError("--rounds", "is missing", "say how many rounds there are, or give a file of --releases")
    if rounds < 1:
        raise UserError("--rounds", f"{rounds} is no number of rounds", "give at least 1")
    if rate is not None and not 0 < rate <= 1:
        raise UserError(option, f"{rate:g} is not in (0, 1]", "give the probability with which a unit is in a round")
    return (Release("rounds", 1.0 if rate is None else rate, rounds),), checked, notes


def _notes_on_clients(clients: int | None, client_rate: float | None, sample_rate: float | None, delta: float) -> Iterator[str]:
    if sample_rate is not None:
        yield f"--sample-rate {sample_rate:g} samples a client's own rows, which does not change what a whole client spends"
    if clients is not None:
        yield f"{clients} clients, {clients * (client_rate or 1.0):g} of them expected in a round"
        if delta * clients >= 1:
            yield f"warning: δ = {delta:g} is not below 1 / clients = {1 / clients:.2g}: it would allow to publish a client outright"


def _refuse_clients(unit: Unit, clients: int | None, client_rate: float | None) -> None:
    """Options on clients say nothing of a unit within one."""
    if clients is not None:
        what = f"how many clients there are does not change the budget of one {unit}"
        raise UserError("--clients", what, "leave it out, or give --unit client")
    if client_rate is not None and client_rate < 1:
        what = f"{client_rate:g} samples clients, which does not amplify the budget of one {unit}"
        raise UserError("--client-rate", what, "leave it out, or give --unit client")


def read_releases(given: Path | str | Sequence[Mapping[str, Any]]) -> tuple[Release, ...]:
    """The releases of a YAML file, or a list as it has one: of :class:`ReleaseSettings`.

    Raises:
        UserError: the file cannot be read or is not such a list.
    """
    path, lines = "releases", dict[Loc, int]()
    data: Any = given
    if isinstance(given, Path | str):
        path = str(given)
        data, lines = parse(read_text(Path(given)), path)
    if not isinstance(data, list) or not data:
        raise UserError(path, "is not a list of releases", "write `- {name: moments, rounds: 1}` lines")
    try:
        releases = TypeAdapter(tuple[ReleaseSettings, ...]).validate_python(data)
    except ValidationError as error:
        raise translated(error, ReleaseSettings, Origin(path, data, lines).place) from error
    names = [given.name for given in releases]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(path, f"two releases are called '{twice[0]}'", "give each a name of its own")
    return tuple(given.release for given in releases)
