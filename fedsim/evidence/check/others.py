"""All checks but that of sensitivity: what is assumed, what is paid, what can be repeated, and what
is left behind.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import NotPerExample
from fedsim.evidence.check.subject import (
    Fault,
    Idle,
    Subject,
    Training,
    drawn,
    fix_random_states,
    random_states,
    same,
    train,
)
from fedsim.evidence.worlds import Query, WatchedPool
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import LocalDPSGD
from fedsim.methods.messages import Tensors
from fedsim.methods.one_shot import OneShot
from fedsim.methods.parameters import add_in_order
from fedsim.methods.products import is_classifier, own
from fedsim.plugins.registry import said
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import LocalPool
from fedsim.training.state import Checkpoints, copied

REMEMBERS_FIX = (
    "let probabilities depend on the row that it is given and on the server's state, and "
    "keep nothing of earlier rows"
)
PUBLIC_FIX = (
    "leave task.public as it is; what is computed from a private row is a release, whatever "
    "it is called"
)
NOISE_FIX = (
    "add all noise by Clients.add_noise alone, with round_.stream (further steps: what "
    "follows) and all of the cohort's members"
)
LEDGER_FIX = (
    "let every step of the plan call Clients.add_noise once, with the release that it is "
    "given; override no noise_at_clients"
)
SEED_FIX = (
    "draw every random number from the seed tree (clients.seeds, server.seeds, Clients.draws)"
)
UNTOUCHED_FIX = "compute on copies; neither rows nor labels are an algorithm's to change"
PACKING_FIX = (
    "send sums over the cohort's members, never means or counts of cohorts; key streams by "
    "client number (clients.members)"
)
SEND_FIX = (
    "let parameters be plain values, and send tensors in sums, tensors or numbers in diagnostics"
)
RESUME_FIX = (
    "keep all that lives on between rounds in server.tensors and clients.state, not in "
    "attributes of the algorithm"
)
RESTORE_FIX = (
    "make the generator from the server's model and tensors, the codes and seeds, and from "
    "nothing else"
)
RANDOM_FIX = (
    "pass generator=... from the seed tree to every draw; copy server.model (copy.deepcopy) "
    "where a second model is needed"
)

SHOWN_ROWS = 3000
"""Rows that a classifier is shown before it is asked again."""
DEVIATIONS = 6.0
"""How many standard errors of an estimate are put down to chance."""
SAME_DRAW = 1e-5
"""Relative difference of two short draws that is put down to rounding."""
PACKINGS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 2, 1), (0, 1, 2)),
    ((1, 1, 1, 1), (3, 1, 2, 0)),
)
"""Clients per actor, and the order in which actors compute."""
ORDER = 1e-4
GROWTH_A_ROUND = 2.0
"""What the order of a sum may change of a tensor in the first round, relative to its norm, and by
how much more in each further one.
"""


def per_example(subject: Subject) -> str:
    """A loss or a statistic of a row depends on no other row."""
    algorithm = subject.algorithm
    if (
        subject.plan is None
        or algorithm.clips_clients()
        or not isinstance(algorithm, DPSGD | LocalDPSGD | OneShot)
    ):
        raise Idle("no loss or statistic whose examples are clipped one by one")
    try:
        if isinstance(algorithm, OneShot):
            cohorts = subject.cohorts()
            train(subject.build(), LocalPool(cohorts, cohorts[0].algorithm), subject.plan, 0)
        else:
            algorithm.check_contract(next(algorithm.schedule()), {})
    except NotPerExample as error:
        remedy = (
            "let row n of every loss part and of all products of a statistic depend on row n "
            "alone: no batch statistics or counts"
        )
        raise Fault(
            " ".join(str(error).split())[:400],
            f"{remedy}, no weights made once for a batch (feed codes in per row)",
        ) from error
    return "what a row adds depends on no other row"


def trains(subject: Subject) -> str:
    """A whole training runs."""
    return f"{len(subject.first[0].records)} rounds on {subject.trial.task.clients} clients"


def predictions(subject: Subject) -> str:
    """What a classifier predicts of a row depends on no other row that it was shown: a tuned cell
    scores it on private rows.

    One held-out unit may change the score by its own prediction alone
    (:mod:`fedsim.privacy.selection`).
    """
    made = subject.first[0].trained.made
    rows = torch.from_numpy(subject.data.x_train)
    if not is_classifier(made):
        raise Idle("a generator is shown no row")
    first = own(made, 0).probabilities(rows[:1])
    for row in rows[1:]:
        own(made, 0).probabilities(row[None])
    for _ in range(SHOWN_ROWS // len(rows)):
        own(made, 0).probabilities(rows)
    again = own(made, 0).probabilities(rows[:1])
    if not same(first, again):
        raise Fault(
            f"what it predicts of a row changes by {float((first - again).abs().max()):.3g} "
            "after other rows",
            REMEMBERS_FIX,
        )
    return "the same prediction of a row before and after others"


def public_rows(subject: Subject) -> str:
    """The public rows are what they were, for server and clients: nothing of a private row comes to
    anybody as public.
    """
    trial = subject.trial
    given = subject.data.public
    if trial.cell.public_hash is None or given is None:
        return "it uses none"
    held = [
        trial.task.public,
        *(cohort.algorithm.task.public for cohort in subject.first[1].cohorts),
    ]
    if any(rows is not given for rows in held):
        raise Fault("a training put other rows in the place of task.public", PUBLIC_FIX)
    if replace(given).fingerprint != trial.cell.public_hash:
        raise Fault("a training wrote into task.public", PUBLIC_FIX)
    return "the grid's, before and after a training"


def noise(subject: Subject) -> str:
    """Clients' noise has the planned standard deviation, and differs for every client and step; a
    server's is the harness's.
    """
    if subject.plan is None:
        raise Idle("not private")
    pool = WatchedPool(subject.cohorts((1,) * subject.trial.task.clients))
    train(subject.build(), pool, subject.plan, 0)
    silo = subject.plan.trust == "silo"
    draws = [
        (client, query, _added(query, silo=silo))
        for client, tape in enumerate(pool.tapes)
        for query in tape.queries
    ]
    for length in {len(values) for *_, values in draws} - {0}:
        _check_fresh([draw for draw in draws if len(draw[2]) == length])
    for release in subject.plan.releases:
        values = torch.cat(
            [
                torch.zeros(0).double(),
                *(values for _, query, values in draws if query.release.name == release.name),
            ]
        )
        size = float(values.square().mean().sqrt())
        planned = subject.plan.noise_std(release.name)
        allowed = max(DEVIATIONS / math.sqrt(2 * max(len(values), 1)), 1e-3)
        if len(values) and not abs(size / planned - 1) <= allowed:
            raise Fault(
                f"clients' noise on '{release.name}' has standard deviation {size:.4g}, "
                f"planned is {planned:.4g}",
                NOISE_FIX,
            )
    return "of the planned size, no two draws alike"


def _added(query: Query, *, silo: bool) -> Tensor:
    pairs = [(value, query.noised.kept[name]) for name, value in query.kept.items()]
    if silo:
        pairs += [(value, query.noised.sent[name]) for name, value in query.sent.items()]
    return torch.cat(
        [torch.zeros(0).double(), *((noisy - value).double().flatten() for value, noisy in pairs)]
    )


def _check_fresh(draws: Sequence[tuple[int, Query, Tensor]]) -> None:
    """That no two draws of one length are alike."""
    values = torch.stack([added for *_, added in draws])
    for client, query, added in draws:
        if not float(added.norm()) > 0:
            raise Fault(f"client {client} adds no noise in step {query.step}", NOISE_FIX)
    length = values.shape[1]
    unit = values / values.norm(dim=1, keepdim=True)
    correlation = (unit @ unit.T).abs().fill_diagonal_(0)
    # a few numbers are often nearly parallel by chance, but not equal
    if length < DEVIATIONS**2:
        correlation *= torch.cdist(values, values) <= SAME_DRAW * values.norm(dim=1)
    if not float(correlation.max()) <= min(DEVIATIONS / math.sqrt(length), 0.999):
        first, second = (draws[i] for i in divmod(int(correlation.argmax()), len(draws)))
        which = (
            f"client {first[0]} in step {first[1].step} and of client {second[0]} in step "
            f"{second[1].step}"
        )
        raise Fault(
            f"the noise of {which} is used twice (correlation {float(correlation.max()):.3g})",
            NOISE_FIX,
        )


def budget(subject: Subject) -> str:
    """The ledger holds what the plan planned, and epsilon is spent, not overspent."""
    plan = subject.plan
    ledger = subject.first[0].trained.ledger
    if plan is None:
        if ledger.mechanisms() or any(
            record.values["noise_norm"] for record in subject.first[0].records
        ):
            raise Fault(
                "it is not private, yet something is noised or accounted",
                "set private = True, or leave noise alone",
            )
        return "no epsilon, no noise, no ledger"
    if fault := ledger.unaccounted(plan, subject.trial.task.clients):
        raise Fault(fault, LEDGER_FIX)
    spent, accountant = ledger.epsilon(plan.delta)
    text = f"epsilon {spent:.4g} of {plan.epsilon_target:g} ({accountant})"
    if not 0.99 * plan.epsilon_target <= spent <= plan.epsilon_target:
        raise Fault(
            f"{text}: {'over' if spent > plan.epsilon_target else 'under'}spent", LEDGER_FIX
        )
    return text


def determinism(subject: Subject) -> str:
    """The data stay as they are; two trainings of one seed are equal bit for bit, those of two
    seeds differ where there is noise.
    """
    one = subject.first[0]
    data = subject.data
    held = subject.trial.partition.rows
    clients = subject.first[1].cohorts[0].clients
    # of a copy, for the data set itself keeps the fingerprint that it had
    if subject.trial.cell.dataset_hash != replace(data).fingerprint:
        raise Fault("the data set has changed in memory", UNTOUCHED_FIX)
    pooled = clients.pooled
    joined = np.concatenate(held)
    for x, y, rows in [*zip(clients.x, clients.y, held, strict=True), (pooled.x, pooled.y, joined)]:
        if not (
            np.array_equal(x.numpy(), data.x_train[rows])
            and np.array_equal(y.numpy(), data.y_train[rows])
        ):
            raise Fault("clients' rows are not what the partition gave", UNTOUCHED_FIX)
    if difference := _unequal(subject, one, subject.train()):
        raise Fault(f"two trainings with one seed differ: {difference}", SEED_FIX)
    if subject.plan is not None and not _unequal(subject, one, subject.train(seed=1)):
        raise Fault("another seed gives the same result, though there is noise", SEED_FIX)
    return "the same seed gives the same bits, another seed others"


def packing(subject: Subject) -> str:
    """Parameters and messages are sent as they are; clients are packed onto actors in any way,
    which compute in any order.

    The server of another packing is given the first one's sums, so that rounding is not amplified
    from round to round.
    """
    params, (one, pool) = subject.algorithm.params, subject.first
    if type(params).model_validate(json.loads(params.model_dump_json())) != params:
        raise Fault("the parameters are not themselves after JSON", SEND_FIX)
    for number, message in pool.tapes[0].messages.items():
        try:
            pickle.dumps(message)
        except Exception as error:
            raise Fault(
                f"round {number}: the message cannot be serialised ({said(error)[:300]})", SEND_FIX
            ) from error
    for sizes, order in PACKINGS:
        other = WatchedPool(subject.cohorts(sizes), order, pool.tapes)
        two = train(subject.build(), other, subject.plan, 0)
        for before, after in zip(one.progress, two.progress, strict=True):
            number = before.round - 1
            allowed = ORDER * GROWTH_A_ROUND ** (before.round - 1)
            messages = [tape.messages[number] for tape in other.tapes]
            whole = pool.tapes[0].messages[number]
            difference = _apart(
                whole.sums, add_in_order([message.sums for message in messages]), allowed
            )
            difference = difference or _apart(before.tensors, after.tensors, allowed)
            if whole.uplink_bytes != (sent := sum(message.uplink_bytes for message in messages)):
                difference = difference or f"{whole.uplink_bytes} bytes sent became {sent}"
            if difference:
                on = (
                    f"actors of {', '.join(map(str, sizes))} clients, computed in the order "
                    f"{', '.join(map(str, order))}"
                )
                raise Fault(f"on {on}: round {number}: {difference}", PACKING_FIX)
    return "the same on 1, 3 and 4 actors, in any order"


def _apart(one: Tensors, two: Tensors, order: float) -> str:
    """The first tensor, if any, that differs by more than the order of a sum."""
    for name in {**one, **two}:
        if name not in one or name not in two or one[name].shape != two[name].shape:
            return f"'{name}' is not there, or has another shape"
        first = one[name].double()
        second = two[name].double()
        allowed = order * (math.sqrt(first.numel()) / 10 + float(first.norm()))
        if not same(first, second) and not float((first - second).norm()) <= allowed:
            return f"'{name}' differs by up to {float((first - second).abs().max()):.3g}"
    return ""


def resume(subject: Subject) -> str:
    """Going on from the checkpoint of any round, through the bytes of its file, equals the
    uninterrupted training.
    """
    whole = subject.first[0]
    some = sorted(
        {0, 1, len(whole.progress) // 2, len(whole.progress) - 1} & set(range(len(whole.progress)))
    )
    for at in (whole.progress[i] for i in some):
        kept = Checkpoints()
        kept.save(at)
        rest = train(subject.build(), WatchedPool(subject.cohorts()), subject.plan, 0, kept.load())
        if difference := _unequal(subject, whole, rest, at.round):
            raise Fault(
                f"going on after {at.round} of {len(whole.records)} rounds differs: {difference}",
                RESUME_FIX,
            )
    return (
        f"the same after {', '.join(str(i + 1) for i in some)} of {len(whole.records)} "
        "rounds, through a file's bytes"
    )


def restored(subject: Subject) -> str:
    """A generator that is made again from what a run keeps of it, without public rows, is the same
    generator.
    """
    if not subject.algorithm.generates(subject.algorithm.params):
        raise Idle("a classifier is not kept")
    trained = subject.first[0].trained
    bare = replace(
        subject, trial=replace(subject.trial, task=replace(subject.trial.task, public=None))
    )
    again, _ = rounds.restored(bare.build(), copied(trained.state), subject.plan, Seeds(0))
    before, after = (
        drawn(made, subject.data, subject.trial.task.clients) for made in (trained.made, again)
    )
    if not same(before, after):
        by = float((before - after).abs().max())
        raise Fault(
            f"made again from its saved state it generates other rows, by up to {by:.3g}",
            RESTORE_FIX,
        )
    return "the same rows from its saved state"


def finite(subject: Subject) -> str:
    """What was trained answers with finite rows, or class probabilities."""
    made = subject.first[0].trained.made
    task = subject.trial.task
    if is_classifier(made):
        name = "probabilities"
        width = task.classes
    else:
        name = "sample"
        width = task.dim
    said = drawn(made, subject.data, task.clients)
    if said.shape[1:] != (width,):
        raise Fault(f"{name} returned rows of shape {list(said.shape[1:])}", f"return [n, {width}]")
    if not said.isfinite().all():
        raise Fault(f"{name} returned numbers that are not finite", "return finite numbers")
    return f"{said.dtype} [n, {width}]".replace("torch.", "")


def global_random(subject: Subject) -> str:
    """Nothing draws from a global random generator."""
    start = fix_random_states()
    subject.train()  # which starts there, too
    if touched := [name for name, state in random_states().items() if state != start[name]]:
        raise Fault(
            f"the training draws from the global random generator of {' and '.join(touched)}",
            RANDOM_FIX,
        )
    return "torch's, numpy's and Python's are as they were"


def _unequal(subject: Subject, one: Training, two: Training, start: int = 0) -> str:
    """The first thing, if any, in which two trainings differ by a bit; the second one began at
    round ``start``.
    """
    for was, became in zip(one.records[start:], two.records, strict=True):
        for name in {**was.values, **became.values}:
            if repr(was.values.get(name)) != repr(became.values.get(name)):
                return (
                    f"round {was.round}, {name}: {was.values.get(name)!r:.24} and "
                    f"{became.values.get(name)!r:.24}"
                )
    if (one.trained.ledger, one.trained.uplink_bytes) != (
        two.trained.ledger,
        two.trained.uplink_bytes,
    ):
        return "the ledgers, or the bytes sent"
    first, second = (
        drawn(training.trained.made, subject.data, subject.trial.task.clients)
        for training in (one, two)
    )
    if same(first, second):
        return ""
    return f"what the result generates, by up to {float((first - second).abs().max()):.3g}"
