"""Epsilon of another tool's settings, by unit and trust, or why there is none.

    python benchmarks/accounting/diagnose.py FILE

FILE holds the settings (YAML); see :class:`Settings`, and the examples beside this script.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsim.errors import UserError
from fedsim.grid.read import read_yaml
from fedsim.privacy import accountant
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.plan import Release, Trust, Unit, calibrate
from fedsim.words import number


class Calibrated(BaseModel):
    """What a tool solved its noise for: a budget and the local epochs that it assumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(gt=0)
    local_epochs: int = Field(ge=1)


class SparseVector(BaseModel):
    """Parameters of a sparse vector filter that sends a ``fraction`` of the coordinates of an
    update.

    Attributes:
        fraction: of the coordinates.
        epsilon: of the threshold's noise.
        noise_var: epsilon of the noise on each coordinate that is sent.
        parameters: coordinates of an update.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(gt=0, le=1)
    epsilon: float = Field(gt=0)
    noise_var: float = Field(gt=0)
    parameters: int = Field(ge=1)

    @property
    def sent(self) -> int:
        """How many coordinates are sent a round."""
        return math.ceil(self.parameters * self.fraction)

    @property
    def round_epsilon(self) -> float:
        """Of a round, were it the published technique: threshold, choice, and every coordinate's
        own noise.

        Lyu, Su & Li 2017, "Understanding the sparse vector technique for differential privacy",
        algorithm 7 and theorem 4, with the split of their section 4.2, the noise on a coordinate
        not divided by how many there are.
        """
        return float(
            self.epsilon + self.epsilon * (2 * self.sent) ** (2 / 3) + self.sent * self.noise_var
        )


class Settings(BaseModel):
    """What a tool does, as its configuration and its code say.

    Attributes:
        tool: what it is called.
        source: where the settings stand.
        mechanism: Gaussian noise on clipped sums, or a sparse vector filter.
        clipped: whose L2 norm is bounded: each example's gradient, each client's update, or
            nothing's.
        noise_at: who adds it: the server, to the sum or mean over clients, or every client.
        noise_multiplier: standard deviation of the noise on the sum over the clip norm.
        calibrated: in its place, what the noise was solved for.
        claimed_epsilon: what the tool says.
        delta: of every epsilon.
        clip: C.
        rounds: rounds that run.
        local_epochs: noisy passes of a client over its rows in a round, where examples are clipped.
        rows: of a client.
        batch: rows of a local step.
        sampling: how its batches are drawn.
        clients, clients_per_round: how many there are, and take part.
        client_sampling: how they are drawn.
        weights: how updates are weighed in the mean: ``equal`` or by their clients' numbers of
            ``rows``.
        unprotected: what else depends on the data and carries no noise.
        sparse_vector: the filter's parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tool: str
    source: str = ""
    mechanism: Literal["gaussian", "sparse-vector"] = "gaussian"
    clipped: Literal["examples", "updates", "nothing"] = "nothing"
    noise_at: Literal["server", "clients"] = "server"
    noise_multiplier: float | None = Field(None, ge=0)
    calibrated: Calibrated | None = None
    claimed_epsilon: float | None = Field(None, gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)
    clip: float | None = Field(None, gt=0)
    rounds: int = Field(ge=1)
    local_epochs: int = Field(1, ge=1)
    rows: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    sampling: Literal["poisson", "shuffled", "fixed", "all"] = "all"
    clients: int | None = Field(None, ge=1)
    clients_per_round: int | None = Field(None, ge=1)
    client_sampling: Literal["poisson", "fixed", "all"] = "all"
    weights: Literal["equal", "rows"] = "equal"
    unprotected: tuple[str, ...] = ()
    sparse_vector: SparseVector | None = None

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if self.mechanism == "sparse-vector":
            if self.sparse_vector is None:
                raise ValueError("mechanism sparse-vector has parameters; give sparse_vector")
            return self
        if self.clipped == "nothing":
            return self
        if (self.noise_multiplier is None) == (self.calibrated is None):
            raise ValueError(
                "the noise is one number; give noise_multiplier or what it was calibrated for"
            )
        if self.calibrated is not None and self.clipped != "examples":
            raise ValueError(
                "only local steps on examples are solved for epochs here; give noise_multiplier"
            )
        if (
            self.clipped == "examples"
            and self.sampling != "all"
            and (self.rows is None or self.batch is None)
        ):
            raise ValueError("batches are a share of a client's rows; give rows and batch")
        if self.client_sampling != "all" and (
            self.clients is None or self.clients_per_round is None
        ):
            raise ValueError("clients are sampled; give clients and clients_per_round")
        return self

    @property
    def epoch_steps(self) -> int:
        """Steps of a pass over a client's rows."""
        if self.sampling == "all" or not self.rows or not self.batch:
            return 1
        return math.ceil(self.rows / self.batch)

    @property
    def steps(self) -> int:
        """Local steps of all rounds."""
        return self.passes * self.epoch_steps

    @property
    def passes(self) -> int:
        """How often an example is in a batch, if every pass takes it once."""
        return self.rounds * self.local_epochs

    @property
    def sigma(self) -> float:
        """The noise multiplier; solved where it is what the tool solved."""
        if self.calibrated is None:
            return self.noise_multiplier or 0.0
        release = Release(
            "steps", 1 / self.epoch_steps, self.calibrated.local_epochs * self.epoch_steps
        )
        common = {
            "unit": "example",
            "trust": "silo",
            "scope": "",
            "claim": "stated",
            "clip": 1.0,
            "sensitivity": 1.0,
        }
        return calibrate(
            epsilon=self.calibrated.epsilon, delta=self.delta, releases=[release], **common
        ).sigma  # type: ignore[arg-type]


@dataclass(frozen=True)
class Worth:
    """What the noise is worth for one unit under one trust: ε of the noisy steps alone, and what
    was counted; or None, and why.
    """

    unit: Unit
    trust: Trust
    epsilon: float | None
    because: str


def _worth(s: Settings, unit: Unit, trust: Trust) -> Worth:
    if s.mechanism == "sparse-vector":
        return Worth(unit, trust, None, _sparse_vector(s))
    if s.clipped == "nothing":
        return Worth(
            unit,
            trust,
            None,
            "nothing is clipped: one unit can move what is sent by any amount, whatever the noise",
        )
    if s.sigma == 0:
        return Worth(unit, trust, None, "there is no noise")
    if s.weights == "rows" and s.noise_at != "server":
        what = (
            "numbers of rows leave the clients as weights, without noise; with equal weights "
            "it would be"
        )
        equal = _worth(s.model_copy(update={"weights": "equal"}), unit, trust)
        return Worth(
            unit,
            trust,
            None,
            f"{what} ε = {number(equal.epsilon, 4)} ({equal.because})"
            if equal.epsilon
            else equal.because,
        )
    if trust == "silo" and s.noise_at == "server":
        return Worth(
            unit,
            trust,
            None,
            "a client's message leaves it without noise, which the server adds later",
        )
    if s.clipped == "examples":
        return _of_examples(s, unit, trust)
    return _of_updates(s, unit, trust)


def _of_examples(s: Settings, unit: Unit, trust: Trust) -> Worth:
    if unit == "client":
        return Worth(
            unit,
            trust,
            None,
            "examples are clipped one by one: nothing bounds what all of a client's examples "
            "do together",
        )
    if s.sampling == "poisson":
        told = (
            f"{s.steps} steps on Poisson samples of rate 1/{s.epoch_steps}, as Opacus' loader "
            f"has it, σ = {number(s.sigma, 4)}"
        )
        return Worth(unit, trust, _epsilon(s, Mechanism(s.sigma, 1 / s.epoch_steps, s.steps)), told)
    if s.sampling == "all":
        told = f"{s.steps} steps on all rows, σ = {number(s.sigma, 4)}"
        return Worth(unit, trust, _epsilon(s, Mechanism(s.sigma, 1.0, s.steps)), told)
    if s.sampling == "shuffled":
        # of two permutations alike but for that, one of the rows' and one of all but one of them
        sigma = s.sigma / math.sqrt(2**2 + 1**2)
        moved = (
            "the last row of a pass takes the place of one that is gone: its batch moves by "
            "2 C, the last one by C"
        )
        told = (
            f"{s.passes} passes, no amplification: batches are shuffled and not Poisson "
            f"samples, {moved}, σ = {number(sigma, 4)} of both"
        )
        return Worth(unit, trust, _epsilon(s, Mechanism(sigma, 1.0, s.passes)), told)
    sigma = s.sigma / 2
    moved = "another row takes the place of one that is gone, 2 C"
    told = (
        f"{s.steps} steps, no amplification: batches have a fixed size and are no Poisson "
        f"samples, {moved}, σ = {number(sigma, 4)}"
    )
    return Worth(unit, trust, _epsilon(s, Mechanism(sigma, 1.0, s.steps)), told)


def _of_updates(s: Settings, unit: Unit, trust: Trust) -> Worth:
    sigma = s.sigma
    told = [f"{s.rounds} rounds"]
    if s.weights == "rows" and s.noise_at == "server":
        what = (
            "updates are weighed by their clients' numbers of rows: one client's share of "
            "the mean is not bounded by 1 / clients, "
            "which the noise assumes, and the numbers are private themselves; with equal "
            "weights it would be "
        )
        equal = _of_updates(s.model_copy(update={"weights": "equal"}), unit, trust)
        return Worth(unit, trust, None, f"{what}ε = {number(equal.epsilon, 4)} ({equal.because})")
    rate = 1.0
    if unit == "example":
        sigma /= 2
        told.append(
            "one example may turn its client's clipped update into any other, 2 C, without "
            "amplification"
        )
    elif s.client_sampling == "poisson" and trust == "aggregate":
        rate = (s.clients_per_round or 1) / (s.clients or 1)
        told.append(f"Poisson samples of rate {number(rate)}")
    elif s.client_sampling == "fixed":
        told.append(
            "a fixed number of clients is drawn, which is no Poisson sample: no amplification"
        )
    told.append(f"σ = {number(sigma, 4)}")
    return Worth(unit, trust, _epsilon(s, Mechanism(sigma, rate, s.rounds)), ", ".join(told))


def _sparse_vector(s: Settings) -> str:
    filter_ = s.sparse_vector
    assert filter_ is not None
    each = filter_.round_epsilon
    return (
        f"the proof of the sparse vector technique stops at the {filter_.sent:,}th "
        "coordinate above the threshold; this filter takes whole "
        "passes and sends a random part of what passed. Were it the published technique, ε "
        f"= {each:,.0f} a round and "
        f"{each * s.rounds:,.0f} in {s.rounds} rounds by basic composition, and not "
        f"{number(filter_.epsilon)}"
    )


def _epsilon(s: Settings, ran: Mechanism) -> float:
    return accountant.epsilon([ran], s.delta)[0]


def diagnosis(settings: Settings) -> Iterator[str]:
    """The diagnosis in words, line by line."""
    yield settings.tool + (f" ({settings.source})" if settings.source else "")
    if settings.calibrated is not None:
        c = settings.calibrated
        run = f"{c.local_epochs} epochs; {settings.passes} epochs run"
        yield (
            f"the noise was solved for ε = {number(c.epsilon)} in {run}: σ = "
            f"{number(settings.sigma, 4)}"
        )
    # no other tool samples and clips groups
    found = [
        _worth(settings, unit, trust) for unit in ("example", "client") for trust in get_args(Trust)
    ]
    for epsilon, because in dict.fromkeys((worth.epsilon, worth.because) for worth in found):
        members = [worth for worth in found if (worth.epsilon, worth.because) == (epsilon, because)]
        places = {
            "unit": [worth.unit for worth in members],
            "trust": [worth.trust for worth in members],
        }
        where = [f"{name} {' and '.join(dict.fromkeys(values))}" for name, values in places.items()]
        if epsilon is None:
            told = "no ε, because"
        else:
            told = f"ε = {number(epsilon, 4)} at δ = {number(settings.delta)}:"
        yield f"  {', '.join(where)}: {told} {because}"
    yield (
        "  (add-or-remove-one; a client's whole contribution is there or is zero; privacy loss "
        "distributions, the worse order)"
    )
    best = min((worth.epsilon for worth in found if worth.epsilon is not None), default=None)
    if settings.claimed_epsilon is not None and best is not None:
        yield (
            f"it says ε = {number(settings.claimed_epsilon)}: its noisy steps spend "
            f"{number(best, 4)}"
        )
    if settings.unprotected:
        yield "no ε for the whole, because"
        yield from (f"  - {each}" for each in settings.unprotected)


def main() -> None:
    """Print the diagnosis of a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    path = parser.parse_args().file
    try:
        print("\n".join(diagnosis(Settings.model_validate(read_yaml(path)[0]))))
    except (UserError, ValidationError) as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main()
