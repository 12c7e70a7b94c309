"""The rounds of a training: broadcast, client computation, sum, noise, server step, ledger."""

from __future__ import annotations

import math
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from fedsim.training.state import Checkpoint, below, copied, load_server, nested, released_state


@dataclass(frozen=True)
class RoundRecord:
    """A round's line of ``rounds.jsonl``; all but the release's name are diagnostics, not
    private.
    """

    round: int
    rounds: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """The outcome of :func:`train`.

    Attributes:
        made: the generator or classifier.
        shares: class frequencies ``[C]`` from released counts; None if none were released.
        ledger: the steps that ran.
        uplink_bytes, downlink_bytes: bytes that all clients sent and received.
        state: the state from which ``made`` was made
            (:func:`fedsim.training.state.released_state`).
    """

    made: Product
    shares: NDArray[np.float64] | None
    ledger: Ledger
    uplink_bytes: int
    downlink_bytes: int
    state: Tensors


def train(
    algorithm: Algorithm,
    pool: LocalPool,
    plan: PrivacyPlan | None,
    seeds: Seeds,
    resume: Checkpoint | None = None,
    checkpoint: Callable[[Callable[[], Checkpoint]], None] | None = None,
    device: torch.device = CPU,
    watch: Callable[[Round, Tensors], None] | None = None,
    schedule: Iterable[Round] | None = None,
) -> abc.Generator[RoundRecord, None, Trained]:
    """Run all rounds: yields every round's record, returns the outcome.

    Args:
        algorithm: the mathematics.
        pool: the clients.
        plan: from :func:`fedsim.methods.algorithm.solved_plan`.
        seeds: the cell's seed tree.
        resume: continue from here; the result is that of an uninterrupted training.
        checkpoint: called after every round with a function that captures the progress, which it
            may call.
        device: of the server.
        watch: called in every round with what the server gets, the noisy sums, which it must not
            change.
        schedule: the rounds to run; None: all of the algorithm's.
    """
    server = algorithm.initial_server(seeds.public).to(device)
    server.plan = plan
    ledger = Ledger()
    uplink = 0
    downlink = 0
    start = 0
    if resume is not None:
        start = resume.round
        ledger = Ledger.from_json(resume.ledger)
        uplink = resume.uplink_bytes
        downlink = resume.downlink_bytes
        load_server(server, below("server", resume.tensors))
        pool.load_state(below("clients", resume.tensors))
    phases = algorithm.phases()
    rounds = sum(phase.release.rounds for phase in phases)
    for round_ in algorithm.schedule() if schedule is None else schedule:
        if round_.number < start:
            continue
        phase = phases[round_.phase]
        messages = pool.round(round_, phase.broadcast(server))
        total = add_in_order([moved(message.sums, device) for message in messages])
        noise, multiplier = server_noise(algorithm, plan, round_, total, seeds)
        signal = squared_sums(total)
        drawn = moved(noise.parts, device)
        noisy = rounded(
            {name: value + drawn[name] for name, value in total.items()} if drawn else total
        )
        if watch is not None:
            watch(round_, noisy)
        values = phase.at_server(server, round_, noisy)
        record = {
            "release": round_.release.name,
            "main": round_.release.main,
            **_gathered(messages, noise, signal, values),
        }
        server.tensors = in_order(server.tensors)
        for step in (step for message in messages for step in message.ran.steps):
            if (ran := step.noised(multiplier)).costs:
                ledger.record(step.members, ran)
        uplink += sum(message.uplink_bytes for message in messages)
        downlink += sum(message.downlink_bytes or 0 for message in messages)
        if checkpoint is not None:
            checkpoint(
                partial(
                    _captured,
                    server,
                    pool,
                    ledger,
                    round_.number + 1,
                    (uplink, downlink),
                    seeds.secret,
                )
            )
        yield RoundRecord(round_.number, rounds, record)
    server.codes = moved(pool.released(algorithm.released_names(server.model)), device)
    state = released_state(server)
    return Trained(*_made(algorithm, server), ledger, uplink, downlink, state)


def _captured(
    server: Server,
    pool: LocalPool,
    ledger: Ledger,
    round_: int,
    sizes: tuple[int, int],
    secret: int | None,
) -> Checkpoint:
    """The progress after ``round_`` rounds: ``sizes``, the bytes sent and received, and the root of
    the secret streams, too.
    """
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel()}
    own = nested("model", copied(parameters)) | nested("tensors", copied(server.tensors))
    return Checkpoint(
        round_,
        nested("server", own) | nested("clients", pool.state()),
        ledger.to_json(),
        *sizes,
        secret,
    )


def to_the_end(
    steps: abc.Generator[RoundRecord, None, Trained],
) -> tuple[list[RoundRecord], Trained]:
    """All records of a :func:`train`, and its outcome."""
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
    """The generator or classifier of an earlier training and its released label shares, from its
    ``Trained.state``, plan and seeds.
    """
    server = algorithm.initial_server(seeds.public).to(device)
    server.plan = plan
    load_server(server, below("server", state))
    server.codes = moved(below("codes", state), device)
    return _made(algorithm, server)


def _made(algorithm: Algorithm, server: Server) -> tuple[Product, NDArray[np.float64] | None]:
    """What is made of parameters at their mean over iterates, if there is one; and the released
    label shares, if there are any.
    """
    load_parameters(server.model, server.tensors, "average.")
    made = shortened(algorithm.product(server), algorithm.task.dim)
    counts = algorithm.label_counts(server)
    classes = algorithm.task.classes
    if counts is None:
        return made, None
    if counts.shape != (classes,):
        raise ValueError(
            f"label_counts returned {list(counts.shape)}, not a number a class, [{classes}]"
        )
    known = counts.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0).clamp_min(0.0).numpy()
    return made, known / known.sum() if known.any() else None


def server_noise(
    algorithm: Algorithm, plan: PrivacyPlan | None, round_: Round, total: Tensors, seeds: Seeds
) -> tuple[Noise, float]:
    """The noise that the server adds, once, to the sum; with its multiplier, 0 without noise."""
    if plan is None or algorithm.noise_at_clients():
        return Noise({}, 0), 0.0
    std = plan.noise_std(round_.release.name)
    shapes = {name: value.shape for name, value in total.items()}
    return gaussian(
        shapes, std, seeds.keystream(Purpose.NOISE, round_.stream)
    ), std / plan.sensitivity


def _gathered(
    messages: Sequence[Message], noise: Noise, signal: Tensor, values: Values
) -> dict[str, Any]:
    """The diagnostics of a round, copied from the device together."""
    diagnostics: dict[str, list[Diagnostic]] = {}
    for message in messages:
        for name, value in message.diagnostics.items():
            diagnostics.setdefault(name, []).append(Diagnostic.of(value))
    waiting: dict[Any, Any] = {
        (name, i): part.values
        for name, parts in diagnostics.items()
        for i, part in enumerate(parts)
    }
    waiting |= {("server", name): value for name, value in values.items()} | {"signal": signal}
    tensors: dict[Any, Tensor] = {
        key: value for key, value in waiting.items() if isinstance(value, Tensor)
    }
    there = waiting | moved(tensors, CPU)
    record: dict[str, Any] = {
        "sampled": sum(message.ran.sampled for message in messages) % 2**32,
        "noise": (sum(message.ran.noise for message in messages) + noise.fingerprint) % 2**32,
        "signal_norm": math.sqrt(sum(there["signal"].tolist())),
        "noise_norm": l2_norm(noise.parts),
    }
    # a cohort that sampled no row has no loss
    for name, parts in diagnostics.items():
        reduced = Diagnostic.reduced(
            [replace(part, values=there[name, i]) for i, part in enumerate(parts)]
        )
        record[f"{name}_quantiles" if parts[0].reduction == "quantiles" else name] = reduced
    return record | {name: float(there["server", name]) for name in values}
