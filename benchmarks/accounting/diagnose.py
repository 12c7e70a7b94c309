"""Computes ε from the settings of another tool, or says why there is none.

    python benchmarks/accounting/diagnose.py FILE

FILE is a YAML file with the settings; :class:`Settings` lists its keys, and this folder has
examples. The script prints what the noise guarantees to one example and to one client, if an
adversary sees the sum over clients (trust `aggregate`) and if it sees every message (trust `silo`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
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

UNITS: tuple[Unit, ...] = ("example", "client")
"""The units of a diagnosis. No other tool samples and clips groups."""


class Calibrated(BaseModel):
    """The budget for which a tool computed its noise.

    Attributes:
        epsilon: the target ε.
        local_epochs: the number of passes over a client's examples that the tool assumed for the
            whole training. In :class:`Settings` it is the number per round.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(gt=0)
    local_epochs: int = Field(ge=1)


class SparseVector(BaseModel):
    """The parameters of a filter that sends a share of the coordinates of an update.

    Attributes:
        fraction: the share of the coordinates that are sent.
        epsilon: the ε of the threshold's noise.
        noise_var: the ε of the noise on each coordinate that is sent; the tool calls it a variance.
        parameters: the number of coordinates of an update.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = Field(gt=0, le=1)
    epsilon: float = Field(gt=0)
    noise_var: float = Field(gt=0)
    parameters: int = Field(ge=1)

    @property
    def sent(self) -> int:
        """The number of coordinates that are sent in a round."""
        return math.ceil(self.parameters * self.fraction)

    @property
    def round_epsilon(self) -> float:
        """The ε of a round if the filter were the published sparse vector technique.

        With c coordinates sent it is

            ε + (2c)^(2/3) ε + c ε_noise,

        for the threshold, for the choice of coordinates, and for the noise on each of them (Lyu, Su
        & Li 2017, "Understanding the sparse vector technique for differential privacy", algorithm 7
        and theorem 4, with the split of section 4.2). ε_noise is not divided by c, because the
        filter adds noise of this ε to every coordinate.
        """
        choice = self.epsilon * (2 * self.sent) ** (2 / 3)
        return float(self.epsilon + choice + self.sent * self.noise_var)


class Settings(BaseModel):
    """The settings of a tool, as its configuration and its code have them.

    Attributes:
        tool: the name of the tool.
        source: the files from which the settings were read.
        mechanism: ``gaussian`` for Gaussian noise on clipped sums, or ``sparse-vector`` for a
            sparse vector filter.
        clipped: what is clipped to the L2 norm C: the gradient of each example (``examples``), the
            update of each client (``updates``), or ``nothing``.
        noise_at: who adds the noise: the ``server`` to the sum or mean over clients, or all
            ``clients`` to their messages.
        noise_multiplier: the standard deviation of the noise, divided by the clip norm. For noise
            at the server it is the noise on the sum over clients; for noise at the clients, the
            noise that each client adds to its own sum or update.
        calibrated: the budget for which the noise was computed; it replaces ``noise_multiplier``.
        claimed_epsilon: the ε that the tool claims.
        delta: the δ of every ε.
        clip: C, the clip norm. ε does not depend on it.
        rounds: the number of rounds that run.
        local_epochs: the number of passes of a client over its examples in a round.
        rows: the number of examples of a client.
        batch: the number of examples in a local step.
        sampling: how batches are drawn: as ``poisson`` samples, by cutting the ``shuffled``
            examples into batches, as independent samples of ``fixed`` size, or ``all`` examples at
            once.
        clients: the number of clients.
        clients_per_round: the number of clients that take part in a round.
        client_sampling: how these clients are drawn: as ``poisson`` samples, as samples of
            ``fixed`` size, or ``all`` of them.
        weights: the weights of updates in the mean: ``equal``, or the clients' numbers of examples
            (``rows``).
        unprotected: sentences about everything else that depends on the data and has no noise.
        sparse_vector: the parameters of the filter.
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
    def _has_all_it_needs(self) -> Settings:
        if self.mechanism == "sparse-vector":
            if self.sparse_vector is None:
                raise ValueError("mechanism sparse-vector needs parameters; give sparse_vector")
            return self
        if self.clipped != "nothing":
            self._check_noise()
            self._check_sampling()
        return self

    def _check_noise(self) -> None:
        if (self.noise_multiplier is None) == (self.calibrated is None):
            raise ValueError(
                "the noise must be given once; give either noise_multiplier or calibrated"
            )
        if self.calibrated is not None and self.clipped != "examples":
            raise ValueError(
                "calibrated is for local steps on examples only; give noise_multiplier"
            )

    def _check_sampling(self) -> None:
        has_batches = self.rows is not None and self.batch is not None
        if self.clipped == "examples" and self.sampling != "all" and not has_batches:
            raise ValueError("batches are sampled, but their size is missing; give rows and batch")
        has_clients = self.clients is not None and self.clients_per_round is not None
        if self.client_sampling != "all" and not has_clients:
            raise ValueError(
                "clients are sampled, but their numbers are missing; give clients and "
                "clients_per_round"
            )

    @property
    def epoch_steps(self) -> int:
        """The number of steps of one pass over a client's examples."""
        if self.sampling == "all" or not self.rows or not self.batch:
            return 1
        return math.ceil(self.rows / self.batch)

    @property
    def passes(self) -> int:
        """The number of passes of a client over its examples, in all rounds."""
        return self.rounds * self.local_epochs

    @property
    def steps(self) -> int:
        """The number of local steps of a client, in all rounds."""
        return self.passes * self.epoch_steps

    @property
    def sigma(self) -> float:
        """The noise multiplier: as given, or computed for the budget in ``calibrated``."""
        if self.calibrated is None:
            return self.noise_multiplier or 0.0
        steps = self.calibrated.local_epochs * self.epoch_steps
        plan = calibrate(
            epsilon=self.calibrated.epsilon,
            delta=self.delta,
            releases=[Release("steps", 1 / self.epoch_steps, steps)],
            unit="example",
            trust="silo",
            scope="",
            claim="stated",
            clip=1.0,
            sensitivity=1.0,
        )
        return plan.sigma

    def epsilon_of(self, sigma: float, sample_rate: float, steps: int) -> float:
        """Return the ε of Gaussian mechanisms at the δ of the settings.

        Args:
            sigma: the standard deviation of the noise over the sensitivity.
            sample_rate: the rate of their Poisson samples; 1 for no sampling.
            steps: the number of mechanisms.
        """
        epsilon, _ = accountant.epsilon([Mechanism(sigma, sample_rate, steps)], self.delta)
        return epsilon

    def with_equal_weights(self) -> Settings:
        """Return the settings with equal weights of all updates."""
        return self.model_copy(update={"weights": "equal"})


@dataclass(frozen=True)
class Finding:
    """The guarantee of the noise for one unit under one trust.

    Attributes:
        epsilon: the ε of the noisy steps alone; None if there is none.
        reason: what was counted, or why there is no ε.
    """

    epsilon: float | None
    reason: str

    @property
    def words(self) -> str:
        """The ε and its reason, as a phrase."""
        return f"ε = {number(self.epsilon, 4)} ({self.reason})"


def finding_of(settings: Settings, unit: Unit, trust: Trust) -> Finding:
    """Return what the noise guarantees to a unit under a trust."""
    if settings.mechanism == "sparse-vector":
        return sparse_vector_filter(settings)
    if settings.clipped == "nothing":
        reason = (
            "nothing is clipped, so one unit can change what is sent by any amount, however much "
            "noise there is"
        )
        return Finding(None, reason)
    if settings.sigma == 0:
        return Finding(None, "there is no noise")
    if settings.weights == "rows":
        return weighted_by_rows(settings, unit, trust)
    if trust == "silo" and settings.noise_at == "server":
        return Finding(
            None, "the server adds the noise, so the message of a client leaves it without noise"
        )
    if settings.clipped == "updates":
        return clipped_updates(settings, unit, trust)
    if unit == "client":
        reason = (
            "each example is clipped alone, so nothing bounds what all examples of a client "
            "change together"
        )
        return Finding(None, reason)
    if settings.noise_at == "server" and settings.steps > settings.rounds:
        reason = (
            "a client takes several steps before the server adds noise, so nothing bounds what one "
            "example changes in the sum"
        )
        return Finding(None, reason)
    return clipped_examples(settings)


def weighted_by_rows(settings: Settings, unit: Unit, trust: Trust) -> Finding:
    """Return why there is no ε if updates are weighted by their clients' numbers of examples."""
    equal_finding = finding_of(settings.with_equal_weights(), unit, trust)
    if equal_finding.epsilon is None:
        return equal_finding
    if settings.noise_at == "clients":
        reason = "the clients send their numbers of examples as weights, without noise"
    elif settings.clipped == "updates":
        reason = (
            "updates are weighted by their clients' numbers of examples, so the share of one "
            "client in the mean is not bounded by 1 / clients, as the noise assumes, and the "
            "numbers themselves are private"
        )
    else:
        reason = (
            "updates are weighted by their clients' numbers of examples, which are private and "
            "carry no noise"
        )
    return Finding(None, f"{reason}; with equal weights it would be {equal_finding.words}")


def clipped_examples(settings: Settings) -> Finding:
    """Return the guarantee to one example if the gradient of each example is clipped."""
    sigma = settings.sigma
    if settings.sampling == "poisson":
        epsilon = settings.epsilon_of(sigma, 1 / settings.epoch_steps, settings.steps)
        reason = (
            f"{settings.steps} steps on Poisson samples of rate 1/{settings.epoch_steps}, as "
            f"Opacus' loader draws them, σ = {number(sigma, 4)}"
        )
        return Finding(epsilon, reason)
    if settings.sampling == "all":
        epsilon = settings.epsilon_of(sigma, 1.0, settings.steps)
        return Finding(epsilon, f"{settings.steps} steps on all examples, σ = {number(sigma, 4)}")
    if settings.sampling == "shuffled":
        return shuffled_examples(settings)
    # In a sample of fixed size, another example takes the place of the missing one. So the sum
    # changes by up to 2 C.
    sigma /= 2
    epsilon = settings.epsilon_of(sigma, 1.0, settings.steps)
    reason = (
        f"{settings.steps} steps without amplification, because batches of a fixed size are no "
        "Poisson samples; another example takes the place of a missing one, which changes the sum "
        f"by 2 C, so σ = {number(sigma, 4)}"
    )
    return Finding(epsilon, reason)


def shuffled_examples(settings: Settings) -> Finding:
    """Return the guarantee to one example if batches are cut from the shuffled examples.

    We compare two shuffles that are equal but for one missing example. In each pass the last
    example moves into the gap. So one batch changes by at most 2 C and the last batch by at most C,
    and both together by sqrt(2² + 1²) C.
    """
    sigma = settings.sigma / math.sqrt(2**2 + 1**2)
    epsilon = settings.epsilon_of(sigma, 1.0, settings.passes)
    reason = (
        f"{settings.passes} passes without amplification, because shuffled batches are no Poisson "
        "samples; the last example of a pass takes the place of a missing one, which changes one "
        f"batch by 2 C and the last batch by C, so σ = {number(sigma, 4)} for both together"
    )
    return Finding(epsilon, reason)


def clipped_updates(settings: Settings, unit: Unit, trust: Trust) -> Finding:
    """Return the guarantee to a unit if the update of each client is clipped."""
    sigma = settings.sigma
    rate = 1.0
    reasons = [f"{settings.rounds} rounds"]
    if unit == "example":
        sigma /= 2
        reasons.append(
            "without amplification, because one example can turn the clipped update of its client "
            "into any other one, which changes the sum by 2 C"
        )
    elif settings.client_sampling == "poisson" and settings.noise_at == "clients":
        # The noise is drawn only if its client is. The sum is computed from noisy messages, so it
        # costs no more than they do.
        reasons.append(
            "without amplification, because a client that does not take part adds no noise"
        )
    elif settings.client_sampling == "poisson" and trust == "aggregate":
        rate = (settings.clients_per_round or 1) / (settings.clients or 1)
        reasons.append(f"Poisson samples of rate {number(rate)}")
    elif settings.client_sampling == "fixed":
        reasons.append(
            "without amplification, because a fixed number of clients is no Poisson sample"
        )
    reasons.append(f"σ = {number(sigma, 4)}")
    epsilon = settings.epsilon_of(sigma, rate, settings.rounds)
    return Finding(epsilon, ", ".join(reasons))


def sparse_vector_filter(settings: Settings) -> Finding:
    """Return why a sparse vector filter has no ε, and what ε the published technique would have."""
    sparse_vector = settings.sparse_vector
    assert sparse_vector is not None  # the settings were validated
    round_epsilon = sparse_vector.round_epsilon
    reason = (
        "the proof of the sparse vector technique stops at the "
        f"{sparse_vector.sent:,}th coordinate above the threshold, but this filter makes whole "
        "passes over the coordinates and sends a random part of those above it. If it were the "
        f"published technique, ε would be {round_epsilon:,.0f} a round and "
        f"{round_epsilon * settings.rounds:,.0f} in {settings.rounds} rounds by basic composition, "
        f"and not {number(sparse_vector.epsilon)}"
    )
    return Finding(None, reason)


def diagnosis(settings: Settings) -> Iterator[str]:
    """Yield the lines of the diagnosis."""
    if settings.source:
        yield f"{settings.tool} ({settings.source})"
    else:
        yield settings.tool
    if settings.calibrated is not None:
        budget = settings.calibrated
        yield (
            f"the noise was computed for ε = {number(budget.epsilon)} in {budget.local_epochs} "
            f"epochs, which gives σ = {number(settings.sigma, 4)}; {settings.passes} epochs run"
        )
    findings: dict[tuple[Unit, Trust], Finding] = {}
    for unit in UNITS:
        for trust in get_args(Trust):
            findings[unit, trust] = finding_of(settings, unit, trust)
    yield from finding_lines(findings, settings.delta)
    yield (
        "  (Two data sets are neighbours if one of them lacks a unit; the contribution of a "
        "missing client is zero. ε is that of privacy loss distributions, in the worse of both "
        "directions.)"
    )
    epsilons = [finding.epsilon for finding in findings.values() if finding.epsilon is not None]
    if settings.claimed_epsilon is not None and epsilons:
        # The smallest ε is the reading that is most favourable to the tool.
        yield (
            f"claimed: ε = {number(settings.claimed_epsilon)}; spent by the noisy steps: ε = "
            f"{number(min(epsilons), 4)}"
        )
    if settings.unprotected:
        yield "the whole training has no ε, because"
        for sentence in settings.unprotected:
            yield f"  - {sentence}"


def finding_lines(findings: Mapping[tuple[Unit, Trust], Finding], delta: float) -> Iterator[str]:
    """Yield one line for each different finding, with all units and trusts that have it.

    Args:
        findings: the findings by unit and trust.
        delta: the δ of every ε.
    """
    pairs_by_finding: dict[Finding, list[tuple[Unit, Trust]]] = {}
    for pair, finding in findings.items():
        pairs_by_finding.setdefault(finding, []).append(pair)
    for finding, pairs in pairs_by_finding.items():
        units = " and ".join(dict.fromkeys(unit for unit, _ in pairs))
        trusts = " and ".join(dict.fromkeys(trust for _, trust in pairs))
        if finding.epsilon is None:
            guarantee = "no ε, because"
        else:
            guarantee = f"ε = {number(finding.epsilon, 4)} at δ = {number(delta)}:"
        yield f"  unit {units}, trust {trusts}: {guarantee} {finding.reason}"


def main() -> None:
    """Print the diagnosis of a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a YAML file with the settings")
    path = parser.parse_args().file
    try:
        data, _ = read_yaml(path)
        settings = Settings.model_validate(data)
        lines = list(diagnosis(settings))
    except (UserError, ValidationError) as error:
        sys.exit(f"{path}: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
