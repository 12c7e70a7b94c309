"""Holds the checks of an algorithm, except the check of its sensitivity.

A check is a function of a :class:`fedsim.evidence.check.subject.Subject`. It returns a short text
that says what it saw. It raises ``Fault`` if the algorithm breaks its contract, and ``Idle`` if
there is nothing to check.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import NotPerExample
from fedsim.evidence.check.subject import (
    Fault,
    Idle,
    Subject,
    Training,
    equal,
    fix_random_states,
    random_states,
)
from fedsim.evidence.worlds import WatchedPool, flat, noised_by_clients
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import LocalDPSGD
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import OneShot
from fedsim.methods.parameters import add_in_order
from fedsim.methods.products import is_classifier, own
from fedsim.plugins.registry import said
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.state import Checkpoints, copied

EXAMPLE_FIX = (
    "let row n of every loss part, and of all products of a statistic, depend on example n alone. "
    "Use no statistic or count of the batch, and no weights that are made once for a batch (give "
    "codes per example instead)"
)
REMEMBERS_FIX = (
    "let probabilities depend on the given example and on the server's state alone, and store "
    "nothing of earlier examples"
)
PUBLIC_FIX = (
    "do not change task.public. Whatever is computed from a private example is a release, under "
    "any name"
)
NOISE_FIX = (
    "add all noise by Clients.add_noise, for all members of the cohort, with the number "
    "round_.stream (and the numbers after it for further steps of the round)"
)
LEDGER_FIX = (
    "call Clients.add_noise once in every step of the plan, with the release that it is given, and "
    "do not override noise_at_clients"
)
SEED_FIX = (
    "draw every random number from the seed tree (clients.seeds, server.seeds or Clients.draws)"
)
UNTOUCHED_FIX = "compute on copies of the examples and labels"
PACKING_FIX = (
    "send sums over the members of the cohort, never a mean or a count of the cohort, and key "
    "random streams by the client's number (clients.members)"
)
SEND_FIX = (
    "use plain values as parameters, tensors in Message.sums, and tensors or numbers in diagnostics"
)
RESUME_FIX = (
    "store everything that lives longer than a round in server.tensors and clients.state, not in "
    "attributes of the algorithm"
)
RESTORE_FIX = (
    "make the generator from the server's model, tensors, codes and seeds, and from nothing else"
)
RANDOM_FIX = (
    "give generator=... from the seed tree to every draw. Copy server.model by copy.deepcopy if "
    "you need a second model"
)

SHOWN_ROWS = 3000
"""About how many examples a classifier predicts before it predicts the first ones again."""
DEVIATIONS = 6.0
"""The number of standard errors of an estimate that may be due to chance."""
SAME_DRAW = 1e-5
"""The relative difference of two short draws of noise that may be due to rounding."""
PACKINGS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2, 1), (0, 1, 2)),
    ((1, 1, 1, 1), (3, 1, 2, 0)),
)
"""Numbers of clients per actor, and the order in which the actors compute."""
REORDERED = 1e-4
"""The share of a sum of the first round that may change if it is added up in another order.

The share is taken of the tensor's norm plus a tenth of the square root of its number of entries.
"""
GROWTH_A_ROUND = 2.0
"""The factor by which the allowed change grows with every further round."""


def per_example(subject: Subject) -> str:
    """Check that what an example adds to a loss or a statistic depends on no other example.

    Raises:
        Fault: it depends on another example.
        Idle: the algorithm has no loss or statistic that is clipped by example.
    """
    algorithm = subject.algorithm
    clips_examples = isinstance(algorithm, DPSGD | LocalDPSGD | OneShot)
    if subject.plan is None or algorithm.clips_clients() or not clips_examples:
        raise Idle("it has no loss or statistic whose examples are clipped one by one")
    try:
        if isinstance(algorithm, OneShot):
            cohorts = subject.cohorts()
            subject.train(WatchedPool(cohorts, tried=cohorts[0].algorithm))
        else:
            algorithm.check_contract(next(algorithm.schedule()), {})
    except NotPerExample as error:
        raise Fault(" ".join(str(error).split())[:400], EXAMPLE_FIX) from error
    return "what an example adds depends on no other example"


def trains(subject: Subject) -> str:
    """Check that a whole training runs."""
    return f"{len(subject.first.records)} rounds on {subject.task.clients} clients"


def predictions(subject: Subject) -> str:
    """Check that a classifier's prediction for an example depends on no earlier example.

    A tuned cell scores the classifier on private examples. One held-out unit may change that score
    by its own prediction alone (:mod:`fedsim.privacy.selection`).

    Raises:
        Fault: a prediction changed after other examples.
        Idle: the algorithm trains a generator.
    """
    product = subject.first.trained.made
    rows = torch.from_numpy(subject.data.x_train)
    if not is_classifier(product):
        raise Idle("a generator predicts nothing")
    before = own(product, 0).probabilities(rows[:1])
    for row in rows[1:]:
        own(product, 0).probabilities(row[None])
    for _ in range(SHOWN_ROWS // len(rows)):
        own(product, 0).probabilities(rows)
    after = own(product, 0).probabilities(rows[:1])
    if not equal(before, after):
        raise Fault(
            "its prediction for an example changes by "
            f"{_largest_difference(before, after)} after it has seen other examples",
            REMEMBERS_FIX,
        )
    return "the same prediction for an example before and after it has seen others"


def _largest_difference(first: Tensor, second: Tensor) -> str:
    """Return the largest absolute difference between entries of two tensors, as text."""
    return f"{float((first - second).abs().max()):.3g}"


def public_rows(subject: Subject) -> str:
    """Check that server and clients do not change the public examples.

    Otherwise an algorithm could pass private values on as public ones.

    Raises:
        Fault: a training replaced or changed the public examples.
    """
    trial = subject.trial
    public = subject.data.public
    if trial.cell.public_hash is None or public is None:
        return "it uses none"
    cohorts = subject.first.pool.cohorts
    tasks = [trial.task, *(cohort.algorithm.task for cohort in cohorts)]
    if any(task.public is not public for task in tasks):
        raise Fault("a training replaced task.public by other examples", PUBLIC_FIX)
    if replace(public).fingerprint != trial.cell.public_hash:
        raise Fault("a training wrote into task.public", PUBLIC_FIX)
    return "a training leaves them as they are"


class _NoiseDraw(NamedTuple):
    """The noise that a client added to one query.

    Attributes:
        client: the client's number.
        step: the number that the noise was drawn with.
        release: the name of the release.
        values: all numbers of the noise, flat, in float64.
    """

    client: int
    step: int
    release: str
    values: Tensor


def noise(subject: Subject) -> str:
    """Check that clients' noise has the planned standard deviation and that no draw is reused.

    The noise of a server is drawn by fedsim itself, so it is not checked.

    Raises:
        Fault: noise is missing, has another size, or is used twice.
        Idle: the algorithm is not private.
    """
    plan = subject.plan
    if plan is None:
        raise Idle("not private")
    training = subject.train(WatchedPool(subject.cohorts((1,) * subject.task.clients)))
    draws = []
    for client, tape in enumerate(training.pool.tapes):
        for query in tape.queries:
            plain = noised_by_clients(query.plain, plan.trust)
            noised = noised_by_clients(query.noised, plan.trust)
            values = flat(noised[name] - value for name, value in plain.items())
            draws.append(_NoiseDraw(client, query.step, query.release.name, values))
    # Only draws of the same length can be compared.
    for length in {len(draw.values) for draw in draws} - {0}:
        _check_fresh([draw for draw in draws if len(draw.values) == length])
    for release in plan.releases:
        values = flat(draw.values for draw in draws if draw.release == release.name)
        if len(values):  # The server draws the noise of all other releases.
            _check_size(release.name, values, plan.noise_std(release.name))
    if not any(len(draw.values) for draw in draws):
        return "the server draws all noise"
    return "the noise has the planned size, and no two draws are alike"


def _check_size(name: str, values: Tensor, planned: float) -> None:
    """Raise a fault if noise on a release has another standard deviation than planned."""
    size = float(values.square().mean().sqrt())
    allowed = max(DEVIATIONS / math.sqrt(2 * len(values)), 1e-3)
    if not abs(size / planned - 1) <= allowed:
        raise Fault(
            f"clients' noise on '{name}' has the standard deviation {size:.4g}; the plan says "
            f"{planned:.4g}",
            NOISE_FIX,
        )


def _check_fresh(draws: Sequence[_NoiseDraw]) -> None:
    """Raise a fault if a draw of noise is zero, or if two draws of one length are correlated."""
    for draw in draws:
        if not float(draw.values.norm()) > 0:
            raise Fault(f"client {draw.client} adds no noise in step {draw.step}", NOISE_FIX)
    values = torch.stack([draw.values for draw in draws])
    length = values.shape[1]
    norms = values.norm(dim=1, keepdim=True)
    directions = values / norms
    correlation = (directions @ directions.T).abs().fill_diagonal_(0)
    # Short draws are often nearly parallel by chance, so only equal ones count.
    if length < DEVIATIONS**2:
        correlation *= torch.cdist(values, values) <= SAME_DRAW * norms[:, 0]
    largest = float(correlation.max())
    if not largest <= min(DEVIATIONS / math.sqrt(length), 0.999):
        pair = divmod(int(correlation.argmax()), len(draws))
        first, second = (draws[number] for number in pair)
        raise Fault(
            f"the noise of client {first.client} in step {first.step} and that of client "
            f"{second.client} in step {second.step} have the correlation {largest:.3g}",
            NOISE_FIX,
        )


def budget(subject: Subject) -> str:
    """Check that the ledger equals the plan, and that 99 % to 100 % of epsilon are spent.

    Raises:
        Fault: the ledger differs from the plan, more than all or less than 99 % of the planned
            epsilon was spent, or something is noised without a plan.
    """
    plan = subject.plan
    training = subject.first
    ledger = training.trained.ledger
    if plan is None:
        is_noised = any(record.values["noise_norm"] for record in training.records)
        if ledger.mechanisms() or is_noised:
            raise Fault(
                "the class is not private, but something gets noise or is in the ledger",
                "set private = True, or add no noise",
            )
        return "it has no epsilon, no noise and no ledger"
    difference = ledger.unaccounted(plan, subject.task.clients)
    if difference:
        raise Fault(difference, LEDGER_FIX)
    spent, accountant = ledger.epsilon(plan.delta)
    text = f"epsilon {spent:.4g} of {plan.epsilon_target:g} ({accountant})"
    if spent > plan.epsilon_target:
        raise Fault(f"{text}: overspent", LEDGER_FIX)
    if not spent >= 0.99 * plan.epsilon_target:
        raise Fault(f"{text}: underspent", LEDGER_FIX)
    return text


def determinism(subject: Subject) -> str:
    """Check that a seed decides every bit of a training, and that the data stay as they are.

    Two trainings with one seed are equal to the last bit. Two seeds give different results where
    there is noise.

    Raises:
        Fault: data changed, equal seeds differ, or different seeds give the same result.
    """
    first = subject.first
    _check_data(subject)
    difference = _difference(subject, first, subject.train())
    if difference:
        raise Fault(f"two trainings with one seed differ: {difference}", SEED_FIX)
    if subject.plan is None:
        return "the same seed gives the same bits"
    if not _difference(subject, first, subject.train(seed=1)):
        raise Fault("another seed gives the same result, although there is noise", SEED_FIX)
    return "the same seed gives the same bits, another seed gives others"


def _check_data(subject: Subject) -> None:
    """Raise a fault if the training changed the data set or the labels of a client."""
    data = subject.data
    # A data set computes its fingerprint only once, so the fingerprint of a copy is compared.
    if subject.trial.cell.dataset_hash != replace(data).fingerprint:
        raise Fault("a training changed the data set in memory", UNTOUCHED_FIX)
    rows_of_clients = subject.trial.partition.rows
    clients = subject.first.pool.cohorts[0].clients
    # Clients copy their examples from the data set, so only their labels can have changed.
    for y, rows in zip(clients.y, rows_of_clients, strict=True):
        if not np.array_equal(y.numpy(), data.y_train[rows]):
            raise Fault("a training changed the labels of a client", UNTOUCHED_FIX)


def packing(subject: Subject) -> str:
    """Check that messages can be sent and that results do not depend on how actors share clients.

    Clients are packed onto actors in several ways, and the actors compute in several orders. The
    server of each packing is given the sums of the first training, so that rounding does not grow
    from round to round.

    Raises:
        Fault: parameters or messages cannot be sent, or a packing gives other results.
    """
    params = subject.algorithm.params
    if type(params).model_validate(json.loads(params.model_dump_json())) != params:
        raise Fault("the parameters change when they are saved as JSON and read again", SEND_FIX)
    for number, message in subject.first.pool.tapes[0].messages.items():
        try:
            pickle.dumps(message)
        except Exception as error:
            raise Fault(
                f"round {number}: the message of a client cannot be pickled ({said(error)[:300]})",
                SEND_FIX,
            ) from error
    for sizes, order in PACKINGS:
        difference = _packing_difference(subject, sizes, order)
        if difference:
            actors = ", ".join(map(str, sizes))
            turns = ", ".join(map(str, order))
            raise Fault(
                f"with actors of {actors} clients that compute in the order {turns}: {difference}",
                PACKING_FIX,
            )
    return "the same with 1, 3 and 4 actors, and in another order"


def _packing_difference(
    subject: Subject,
    sizes: tuple[int, ...],
    order: Sequence[int],
) -> str:
    """Return how a training on actors of ``sizes`` clients differs; empty if it does not."""
    first = subject.first
    tapes = first.pool.tapes
    second = subject.train(WatchedPool(subject.cohorts(sizes), order, tapes))
    for before, after in zip(first.progress, second.progress, strict=True):
        number = before.round - 1
        allowed = REORDERED * GROWTH_A_ROUND**number
        # The first training has one actor, whose message is the sum over all clients.
        message = tapes[0].messages[number]
        messages = [tape.messages[number] for tape in second.pool.tapes]
        sums = add_in_order([of_actor.sums for of_actor in messages])
        sent = sum(of_actor.uplink_bytes for of_actor in messages)
        difference = _difference_of_tensors(message.sums, sums, allowed)
        if not difference:
            difference = _difference_of_tensors(before.tensors, after.tensors, allowed)
        if not difference and message.uplink_bytes != sent:
            difference = f"{message.uplink_bytes} bytes sent became {sent}"
        if difference:
            return f"round {number}: {difference}"
    return ""


def _difference_of_tensors(first: Tensors, second: Tensors, share: float) -> str:
    """Return which tensor differs by more than another order of a sum may cause; empty if none.

    Args:
        first: tensors by name.
        second: the same tensors from another training.
        share: the allowed change, see :data:`REORDERED`.
    """
    for name in {**first, **second}:
        if name not in first or name not in second or first[name].shape != second[name].shape:
            return f"'{name}' is missing, or has another shape"
        before = first[name].double()
        after = second[name].double()
        allowed = share * (math.sqrt(before.numel()) / 10 + float(before.norm()))
        if not equal(before, after) and not float((before - after).norm()) <= allowed:
            return f"'{name}' differs by up to {_largest_difference(before, after)}"
    return ""


def resume(subject: Subject) -> str:
    """Check that a training resumed from a checkpoint's file equals the uninterrupted one.

    It is resumed after the first round, the second, the middle one and the last.

    Raises:
        Fault: a resumed training differs.
    """
    whole = subject.first
    count = len(whole.progress)
    tried = sorted({0, 1, count // 2, count - 1} & set(range(count)))
    for number in tried:
        checkpoint = whole.progress[number]
        checkpoints = Checkpoints()
        checkpoints.save(checkpoint)
        rest = subject.train(resume=checkpoints.load())
        difference = _difference(subject, whole, rest, checkpoint.round)
        if difference:
            raise Fault(
                f"a training that resumes after round {checkpoint.round} of {count} differs from "
                f"an uninterrupted one: {difference}",
                RESUME_FIX,
            )
    numbers = ", ".join(str(number + 1) for number in tried)
    return f"the same if it resumes after round {numbers} of {count}, from the bytes of a file"


def restored(subject: Subject) -> str:
    """Check that a generator that is made from its saved state draws the same embeddings.

    It is made without public examples, because a run does not save these.

    Raises:
        Fault: the restored generator draws other embeddings.
        Idle: the algorithm trains a classifier.
    """
    if not subject.algorithm.generates(subject.algorithm.params):
        raise Idle("a run keeps no classifier")
    trial = subject.trial
    trained = subject.first.trained
    without_public = replace(trial, task=replace(trial.task, public=None))
    algorithm = replace(subject, trial=without_public).build()
    generator, _ = rounds.restored(
        algorithm,
        copied(trained.state),
        subject.plan,
        Seeds(0),
    )
    before = subject.answers(trained.made)
    after = subject.answers(generator)
    if not equal(before, after):
        raise Fault(
            "the generator that is made from the saved state draws other embeddings, which differ "
            f"by up to {_largest_difference(before, after)}",
            RESTORE_FIX,
        )
    return "the same embeddings from the saved state"


def finite(subject: Subject) -> str:
    """Check that the trained generator or classifier returns finite numbers of the right shape.

    Raises:
        Fault: the shape is wrong, or a number is not finite.
    """
    product = subject.first.trained.made
    task = subject.task
    if is_classifier(product):
        name = "probabilities"
        width = task.classes
    else:
        name = "sample"
        width = task.dim
    answers = subject.answers(product)
    shape = list(answers.shape[1:])
    if shape != [width]:
        raise Fault(f"{name} returned rows of shape {shape}", f"return [n, {width}]")
    if not answers.isfinite().all():
        raise Fault(f"{name} returned numbers that are not finite", "return finite numbers")
    return f"{answers.dtype} [n, {width}]".replace("torch.", "")


def global_random(subject: Subject) -> str:
    """Check that a training draws nothing from the global random generators.

    Raises:
        Fault: the state of torch's, numpy's or Python's generator changed.
    """
    start = fix_random_states()
    subject.train()  # This fixes the states in the same way before it trains.
    touched = [name for name, state in random_states().items() if state != start[name]]
    if touched:
        raise Fault(
            f"the training draws from the global random generator of {' and '.join(touched)}",
            RANDOM_FIX,
        )
    return "a training leaves the random states of torch, numpy and Python as they are"


def _difference(
    subject: Subject,
    first: Training,
    second: Training,
    start: int = 0,
) -> str:
    """Return as text where two trainings first differ by a bit; empty if they are equal.

    Args:
        subject: the small cell that both trained.
        first: a whole training.
        second: another training, which began at round ``start``.
        start: the number of rounds that only the first training ran.
    """
    for before, after in zip(first.records[start:], second.records, strict=True):
        for name in {**before.values, **after.values}:
            old = before.values.get(name)
            new = after.values.get(name)
            # Their texts are compared, because NaN is not equal to itself.
            if repr(old) != repr(new):
                return f"round {before.round}, {name}: {old!r:.24} and {new!r:.24}"
    if first.trained.ledger != second.trained.ledger:
        return "the ledgers"
    if first.trained.uplink_bytes != second.trained.uplink_bytes:
        return "the number of bytes sent"
    answers = subject.answers(first.trained.made)
    others = subject.answers(second.trained.made)
    if equal(answers, others):
        return ""
    return f"what the result generates, by up to {_largest_difference(answers, others)}"
