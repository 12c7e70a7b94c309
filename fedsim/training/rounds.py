"""The rounds of a training.

In each round the server broadcasts its state, the clients compute, and their messages are summed.
Unless the clients have added the noise themselves, the server adds it to the sum. Then the server
takes a step, and the ledger counts the noisy steps that ran.
"""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.device import CPU, moved
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Diagnostic, Message, Round, Server, Tensors, Values
from fedsim.methods.parameters import (
    add_in_order,
    code_names,
    in_order,
    l2_norm,
    load_parameters,
    rounded,
    squared_sums,
)
from fedsim.methods.products import Product, shortened
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.noise import Noise, gaussian
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import LocalPool
from fedsim.training.state import (
    Checkpoint,
    below,
    copied,
    load_server,
    nested,
    released_state,
    server_state,
)

NUMBERS_AT_ONCE = 2**20
"""The most numbers of a sum to which noise is added at a time; it bounds the float64 copies."""
_RESERVED = {
    "main",
    "noise",
    "noise_norm",
    "release",
    "round",
    "sampled",
    "signal_norm",
    "training_id",
}
"""The names of what a record of a round holds besides diagnostics."""


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``rounds.jsonl``: the diagnostics of a round.

    Diagnostics carry no noise, so no budget protects them and they may not be published.

    Attributes:
        round: the round's number, from 0.
        rounds: the number of rounds of the training.
        values: the diagnostics by name, ``release`` (the release's name) and ``main`` (whether a
            report draws the round as the training).
    """

    round: int
    rounds: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """The outcome of :func:`train`.

    Attributes:
        made: the generator or classifier.
        shares: class frequencies ``[C]`` from released counts; None if no counts were released, or
            if no released count is positive.
        ledger: the steps that ran.
        uplink_bytes, downlink_bytes: bytes that all clients sent and received.
        state: the state from which ``made`` can be made again
            (:func:`fedsim.training.state.released_state`).
    """

    made: Product
    shares: NDArray[np.float64] | None
    ledger: Ledger
    uplink_bytes: int
    downlink_bytes: int
    state: Tensors


@dataclass
class _Progress:
    """The progress of a training, without its tensors.

    Attributes:
        rounds: the number of rounds that have run, which is the number of the next round.
        ledger: the steps that ran.
        uplink_bytes, downlink_bytes: bytes that all clients have sent and received.
    """

    rounds: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    uplink_bytes: int = 0
    downlink_bytes: int = 0

    @classmethod
    def resumed(cls, resume: Checkpoint) -> _Progress:
        """Return the progress at a checkpoint."""
        ledger = Ledger.from_json(resume.ledger)
        return cls(resume.round, ledger, resume.uplink_bytes, resume.downlink_bytes)

    def count(self, round_: Round, messages: Sequence[Message], server_multiplier: float) -> None:
        """Count a round: the steps that cost privacy, and the bytes of its messages."""
        self.rounds = round_.number + 1
        for message in messages:
            self.uplink_bytes += message.uplink_bytes
            self.downlink_bytes += message.downlink_bytes or 0
            for step in message.ran.steps:
                mechanism = step.noised(server_multiplier)
                if mechanism.costs:
                    self.ledger.record(step.members, mechanism)


def train(
    algorithm: Algorithm,
    pool: LocalPool,
    plan: PrivacyPlan | None,
    seeds: Seeds,
    resume: Checkpoint | None = None,
    checkpoint: Callable[[Callable[[], Checkpoint], bool], None] | None = None,
    device: torch.device = CPU,
    watch: Callable[[Round, Tensors], None] | None = None,
    schedule: Iterable[Round] | None = None,
) -> abc.Generator[RoundRecord, None, Trained]:
    """Run the rounds of a training: yield a record after each round, then return the outcome.

    Args:
        algorithm: the algorithm as the server runs it; the cohorts of the pool have their own
            instances.
        pool: the clients, which compute their part of every round.
        plan: from :func:`fedsim.methods.algorithm.solved_plan`; None without privacy.
        seeds: the cell's seed tree.
        resume: the checkpoint to continue from; the outcome equals that of an uninterrupted
            training, bit for bit.
        checkpoint: called after every round with a function that captures the progress, and with
            whether this was the last round. It may call that function, or not.
        device: where the server computes.
        watch: called in every round with what the server gets, the noisy sums. It must not change
            them.
        schedule: the rounds to run; None: all rounds of the algorithm.
    """
    server = algorithm.initial_server(seeds.public).to(device)
    server.plan = plan
    progress = _Progress()
    if resume is not None:
        progress = _Progress.resumed(resume)
        load_server(server, copied(below("server", resume.tensors)))
        pool.load_state(below("clients", resume.tensors))
    start = progress.rounds
    phases = algorithm.phases()
    rounds = sum(phase.release.rounds for phase in phases)
    if schedule is None:
        schedule = algorithm.schedule()

    def captured() -> Checkpoint:
        return Checkpoint(
            progress.rounds,
            nested("server", server_state(server)) | nested("clients", pool.state()),
            progress.ledger.to_json(),
            progress.uplink_bytes,
            progress.downlink_bytes,
            seeds.secret,
        )

    for round_ in schedule:
        if round_.number < start:
            continue
        phase = phases[round_.phase]
        messages = pool.round(round_, phase.broadcast(server))
        total = add_in_order([moved(message.sums, device) for message in messages])
        # A release may be the largest tensor of a training, so nothing keeps a copy of it.
        messages = [replace(message, sums={}) for message in messages]
        noise, multiplier = server_noise(algorithm, plan, round_, total, seeds)
        fingerprint = noise.fingerprint
        noise_norm = l2_norm(noise.parts)
        signal = squared_sums(total)
        noisy = _add_noise(total, noise, device)
        del total, noise
        if watch is not None:
            watch(round_, dict(noisy))
        values = phase.at_server(server, round_, noisy)
        del noisy
        record = {
            "release": round_.release.name,
            "main": round_.release.main,
            **_diagnostics(messages, fingerprint, noise_norm, signal, values),
        }
        server.tensors = in_order(server.tensors)
        progress.count(round_, messages, multiplier)
        if checkpoint is not None:
            checkpoint(captured, progress.rounds == rounds)
        yield RoundRecord(round_.number, rounds, record)
    codes = pool.released(_released_names(algorithm, server, plan))
    server.codes = moved(codes, device)
    state = released_state(server)
    made, shares = _product_and_shares(algorithm, server)
    return Trained(
        made,
        shares,
        progress.ledger,
        progress.uplink_bytes,
        progress.downlink_bytes,
        state,
    )


def _released_names(
    algorithm: Algorithm,
    server: Server,
    plan: PrivacyPlan | None,
) -> list[str]:
    """Return the names of the per-client tensors that leave the clients after the last round.

    A training without noise claims no privacy. So it may release all codes, and it does.
    """
    names = algorithm.released_names(server.model)
    if plan is not None and plan.adds_noise:
        return names
    return list(dict.fromkeys(names + code_names(server.model)))


def _add_noise(total: Tensors, noise: Noise, device: torch.device) -> Tensors:
    """Return the sums, plus the server's noise if there is any, rounded to float32.

    To save memory, each sum is removed from ``total`` once its noise is added, and the sum of both
    may be written over the noise.
    """
    if not noise.parts:
        return rounded(total)
    noisy = {}
    for name, drawn in moved(noise.parts, device).items():
        if total[name].dtype == torch.double and total[name].is_contiguous():
            _add_values(drawn.view(-1), total.pop(name).view(-1))
            # The noise of all sums is one tensor, in which this part may not be aligned.
            noisy[name] = drawn.clone()
        else:
            noisy[name] = total.pop(name) + drawn
    return rounded(noisy)


@torch.no_grad()
def _add_values(noise: Tensor, values: Tensor) -> None:
    """Add float64 values to float32 noise, in place; each sum is rounded once."""
    for start in range(0, len(noise), NUMBERS_AT_ONCE):
        part = slice(start, start + NUMBERS_AT_ONCE)
        noise[part] += values[part]


def to_the_end(
    steps: abc.Generator[RoundRecord, None, Trained],
) -> tuple[list[RoundRecord], Trained]:
    """Run a training that :func:`train` has started to its end.

    Returns:
        The records of all rounds that ran, and the outcome.
    """
    records: list[RoundRecord] = []
    while True:
        try:
            records.append(next(steps))
        except StopIteration as end:
            return records, cast(Trained, end.value)


def restored(
    algorithm: Algorithm,
    state: Tensors,
    plan: PrivacyPlan | None,
    seeds: Seeds,
    device: torch.device = CPU,
) -> tuple[Product, NDArray[np.float64] | None]:
    """Make the generator or classifier of an earlier training again, without training.

    Args:
        algorithm: the algorithm of that training.
        state: its :attr:`Trained.state`.
        plan: its privacy plan.
        seeds: its seeds.
        device: where the server computes.

    Returns:
        The generator or classifier, and the released class frequencies ``[C]`` or None.
    """
    server = algorithm.initial_server(seeds.public).to(device)
    server.plan = plan
    load_server(server, below("server", state))
    server.codes = moved(below("codes", state), device)
    return _product_and_shares(algorithm, server)


def _product_and_shares(
    algorithm: Algorithm,
    server: Server,
) -> tuple[Product, NDArray[np.float64] | None]:
    """Return the generator or classifier, and the released class frequencies ``[C]``.

    If the algorithm keeps the mean of a parameter over iterates, the mean is loaded first. The
    frequencies are None if the algorithm releases no counts, or if no released count is positive.

    Raises:
        ValueError: ``label_counts`` returned another shape than ``[C]``.
    """
    load_parameters(server.model, server.tensors, "average.")
    product = shortened(algorithm.product(server), algorithm.task.dim)
    counts = algorithm.label_counts(server)
    classes = algorithm.task.classes
    if counts is None:
        return product, None
    if counts.shape != (classes,):
        raise ValueError(
            f"label_counts returned shape {list(counts.shape)}; it must return one number for each "
            f"class, shape [{classes}]"
        )
    finite = counts.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)
    positive = finite.clamp_min(0.0).numpy()
    if positive.any():
        return product, positive / positive.sum()
    return product, None


def server_noise(
    algorithm: Algorithm,
    plan: PrivacyPlan | None,
    round_: Round,
    total: Tensors,
    seeds: Seeds,
) -> tuple[Noise, float]:
    """Return the noise that the server adds to the sums ``total``, and its noise multiplier.

    The noise multiplier is the standard deviation divided by the sensitivity. Without a plan, or if
    the clients add the noise, the server's noise is empty and its multiplier is 0.
    """
    if plan is None or algorithm.noise_at_clients():
        return Noise({}, 0), 0.0
    std = plan.noise_std(round_.release.name)
    shapes = {name: value.shape for name, value in total.items()}
    stream = seeds.keystream(Purpose.NOISE, round_.stream)
    return gaussian(shapes, std, stream), std / plan.sensitivity


def _diagnostics(
    messages: Sequence[Message],
    fingerprint: int,
    noise_norm: float,
    signal: Tensor,
    values: Values,
) -> dict[str, Any]:
    """Return the diagnostics of a round by name.

    All tensors are copied from the device together, because each copy waits for it.

    Args:
        messages: the messages of the cohorts.
        fingerprint: the fingerprint of the server's noise.
        noise_norm: the norm of that noise.
        signal: the sum of squares of each sum before noise.
        values: the numbers that the server returned.

    Raises:
        ValueError: a diagnostic or a number of the server has a name of the harness.
    """
    numbers: dict[Any, Any] = {"signal": signal}
    for name, value in values.items():
        numbers["server", name] = value
    by_name: dict[str, list[Diagnostic]] = {}
    for message in messages:
        for name, value_or_diagnostic in message.diagnostics.items():
            diagnostic = Diagnostic.of(value_or_diagnostic)
            same_name = by_name.setdefault(name, [])
            numbers[name, len(same_name)] = diagnostic.values
            same_name.append(diagnostic)
    reserved = _RESERVED & {*by_name, *values}
    if reserved:
        raise ValueError(
            f"a part of the loss or a diagnostic is named '{min(reserved)}', a name under which "
            "fedsim itself records every round; rename it"
        )
    tensors = {key: number for key, number in numbers.items() if isinstance(number, Tensor)}
    numbers |= moved(tensors, CPU)
    sampled = sum(message.ran.sampled for message in messages)
    drawn = sum(message.ran.noise for message in messages)
    squares = numbers["signal"].tolist()
    record: dict[str, Any] = {
        "sampled": sampled % 2**32,
        "noise": (drawn + fingerprint) % 2**32,
        "signal_norm": math.sqrt(sum(squares)),
        "noise_norm": noise_norm,
    }
    for name, diagnostics in by_name.items():
        on_cpu = []
        for i, diagnostic in enumerate(diagnostics):
            on_cpu.append(replace(diagnostic, values=numbers[name, i]))
        key = name
        if diagnostics[0].reduction == "quantiles":
            key = f"{name}_quantiles"
        # Values of all cohorts are reduced together. A cohort that sampled no example has none.
        record[key] = Diagnostic.reduced(on_cpu)
    for name in values:
        number = numbers["server", name]
        record[name] = float(number)
    return record
