"""All checks but that of sensitivity: what is assumed, what is paid, what can be repeated, and what is left behind."""

from __future__ import annotations

import json
import math
import pickle
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import NotPerExample, WrongReturn
from fedsim.evidence.check.subject import CHECKED_CLIENTS, Subject, Training, drawn, same, train
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed, raised
from fedsim.evidence.worlds import Query, WatchedPool
from fedsim.grid.sets import partition_of
from fedsim.methods.contract import answer
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import LocalDPSGD
from fedsim.methods.messages import Diagnostic, Message, Round, Tensors
from fedsim.methods.one_shot import OneShot
from fedsim.methods.products import is_classifier, own
from fedsim.plugins.code_hash import FEDSIM
from fedsim.plugins.places import line_of
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.cohort import LocalPool
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints, copied

ENGINE_FIX = (
    "mend what is named: a layer that uses the batch or draws by itself, or a parameter outside of a layer (which engine: vmap takes)"
)
REMEMBERS_FIX = "let probabilities depend on the row that it is given and on the server's state, and keep nothing of earlier rows"
PUBLIC_FIX = "leave task.public as it is; what is computed from a private row is a release, whatever it is called"
REUSE_FIX = (
    "call Clients.add_noise with round_.stream (further steps: what follows) and all of the cohort's members; draw no noise elsewhere"
)
SCALE_FIX = "add the noise by Clients.add_noise alone; it has the plan's standard deviation"
LEDGER_FIX = (
    "let every step of the plan call Clients.add_noise once, with the release that it is given; override no noise_at_clients; "
    "noise that is drawn otherwise is not counted"
)
SEED_FIX = "draw every random number from the seed tree (clients.seeds, server.seeds, Clients.draws)"
UNTOUCHED_FIX = "compute on copies; neither rows nor labels are an algorithm's to change"
PACKING_FIX = (
    "send sums over the cohort's members, never means or counts of cohorts; key streams by client number (clients.members), not by position"
)
SEND_FIX = "send tensors in sums, tensors or numbers in diagnostics, nothing else"
RESUME_FIX = "keep all that lives on between rounds in server.tensors and clients.state, not in attributes of the algorithm"
RESTORE_FIX = "make the generator from the server's model and tensors, the codes and seeds, and from nothing else"
RANDOM_FIX = (
    "pass generator=... from the seed tree (clients.seeds, server.seeds) to every draw; "
    "a layer that is built draws its weights, so copy server.model (copy.deepcopy) where a second model is needed"
)

TORCH = Path(torch.__file__).parent
SHOWN_ROWS = 3000
"""Rows that a classifier is shown before it is asked again."""
DEVIATIONS = 6.0
"""How many standard errors of an estimate are put down to chance."""
SAME_DRAW = 1e-5
"""Relative difference of two short draws that is put down to rounding."""
PACKINGS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (((1, 2, 1), (0, 1, 2)), ((1, 1, 1, 1), (3, 1, 2, 0)))
"""Clients per actor, and the order in which actors compute."""
ORDER = 1e-4
"""What the order of a sum may change of a tensor in the first round, relative to its norm; Adam divides by small gradients."""
GROWTH_A_ROUND = 2.0
"""By how much more in each further round: training amplifies what is rounded differently, and a fault shows in the first rounds."""
AMPLIFIED = 10.0
"""How many times the change that a last bit of every sum makes may be the order of sums', where training amplifies it faster."""
PLAIN = (bool, int, float, str, type(None), np.floating, np.integer)


def trains(subject: Subject) -> Verdict:
    """A whole training runs."""
    return passed(f"{len(subject.records)} rounds on {subject.trial.task.clients} clients")


def per_example(subject: Subject) -> Verdict:
    """A loss or a statistic of a row depends on no other row."""
    algorithm = subject.algorithm
    if subject.plan is None or algorithm.clips_clients() or not isinstance(algorithm, DPSGD | LocalDPSGD | OneShot):
        return idle("no loss or statistic whose examples are clipped one by one")
    try:
        if isinstance(algorithm, OneShot):
            cohorts = subject.cohorts()
            train(subject.build(), LocalPool(cohorts, cohorts[0].algorithm), subject.plan, 0)
        else:
            algorithm.check_contract(next(algorithm.schedule()), {})
    except NotPerExample as error:
        return failed(_shortened(error), error.remedy)
    except (ValueError, RuntimeError) as error:
        return failed(_shortened(error), ENGINE_FIX) if _is_engines(error) else raised(error, type(algorithm))
    return passed("what a row adds depends on no other row")


def predictions(subject: Subject) -> Verdict:
    """What a classifier predicts of a row depends on no other row that it was shown: a tuned cell scores it on private rows.

    One held-out unit may change the score by its own prediction alone (:mod:`fedsim.privacy.selection`).
    """
    made, rows = subject.first[0].trained.made, torch.from_numpy(subject.data.x_train)
    if not is_classifier(made):
        return idle("a generator is shown no row")
    first = own(made, 0).probabilities(rows[:1])
    for row in rows[1:]:
        own(made, 0).probabilities(row[None])
    for _ in range(SHOWN_ROWS // len(rows)):
        own(made, 0).probabilities(rows)
    again = own(made, 0).probabilities(rows[:1])
    if same(first, again):
        return passed("the same prediction of a row before and after others")
    return failed(f"what it predicts of a row changes by {float((first - again).abs().max()):.3g} after other rows", REMEMBERS_FIX)


def _is_engines(error: Exception) -> bool:
    """Whether fedsim refused what the method gave it; else an exception of the method itself, or of torch on its behalf."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return next(file for file in reversed(files) if not file.is_relative_to(TORCH)).is_relative_to(FEDSIM)


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def public_rows(subject: Subject) -> Verdict:
    """The public rows are what they were, for server and clients: nothing of a private row comes to anybody as public."""
    trial, given = subject.trial, subject.data.public
    if trial.cell.public_hash is None or given is None:
        return passed("it uses none")
    held = [trial.task.public, *(cohort.algorithm.task.public for cohort in subject.first[1].cohorts)]
    if any(rows is not given for rows in held):
        return failed("a training put other rows in the place of task.public", PUBLIC_FIX)
    if replace(given).fingerprint != trial.cell.public_hash:
        return failed("a training wrote into task.public", PUBLIC_FIX)
    return passed("the grid's, before and after a training")


def noise(subject: Subject) -> Verdict:
    """Noise has the planned standard deviation, and differs for every client and round."""
    if subject.plan is None:
        return idle("not private")
    prints = [record.values["noise"] for record in subject.records]
    if again := next((i for i, one in enumerate(prints) if one in prints[:i]), None):
        return failed(f"the noise of round {prints.index(prints[again])} is used again in round {again}", REUSE_FIX)
    pool = WatchedPool(subject.cohorts((1,) * CHECKED_CLIENTS))
    train(subject.build(), pool, subject.plan, 0)
    draws = [(client, query, _added(query, subject.plan)) for client, tape in enumerate(pool.tapes) for query in tape.queries]
    return _used_twice(draws) or _scaled(subject, draws) or passed("of the planned size, no two draws alike")


def _added(query: Query, plan: PrivacyPlan) -> Tensor:
    """The noise that one client added in one step, flat."""
    pairs = [(value, query.noised.kept[name]) for name, value in query.kept.items()]
    pairs += [(value, query.noised.sent[name]) for name, value in query.sent.items()] if plan.trust == "silo" else []
    return torch.cat([torch.zeros(0).double(), *((noisy - value).double().flatten() for value, noisy in pairs)])


def _used_twice(draws: Sequence[tuple[int, Query, Tensor]]) -> Verdict | None:
    for length in {len(values) for *_, values in draws} - {0}:
        own = [draw for draw in draws if len(draw[2]) == length]
        values = torch.stack([values for *_, values in own])
        unit = values / values.norm(dim=1, keepdim=True)
        correlation = (unit @ unit.T).abs().fill_diagonal_(0)
        # a few numbers are often nearly parallel by chance, but not equal
        if length < DEVIATIONS**2:
            correlation *= torch.cdist(values, values) <= SAME_DRAW * values.norm(dim=1)
        if float(correlation.max()) > min(DEVIATIONS / math.sqrt(length), 0.999):
            first, second = (own[i] for i in divmod(int(correlation.argmax()), len(own)))
            which = f"client {first[0]} in step {first[1].step} and of client {second[0]} in step {second[1].step}"
            return failed(f"the noise of {which} is used twice (correlation {float(correlation.max()):.3g})", REUSE_FIX)
    return None


def _scaled(subject: Subject, draws: Sequence[tuple[int, Query, Tensor]]) -> Verdict | None:
    """Whether some noise has another standard deviation than was planned."""
    assert subject.plan is not None
    seen = list[tuple[str, float, int, float]]()
    for release in subject.plan.releases:
        own = torch.cat([torch.zeros(0).double(), *(values for _, query, values in draws if query.release.name == release.name)])
        if len(own):
            size = float(own.square().mean().sqrt())
            seen.append((f"clients' noise on '{release.name}'", size, len(own), subject.plan.noise_std(release.name)))
    if not subject.algorithm.noise_at_clients():
        for round_, record in zip(subject.algorithm.schedule(), subject.records, strict=True):
            count = sum(value.numel() for value in subject.tape.messages[round_.number].sums.values())
            size, planned = record.values["noise_norm"] / math.sqrt(count), subject.plan.noise_std(round_.release.name)
            seen.append((f"the server's noise in round {round_.number}", size, count, planned))
    for whose, size, count, planned in seen:
        if abs(size / planned - 1) > max(DEVIATIONS / math.sqrt(2 * count), 1e-3):
            return failed(f"{whose} has standard deviation {size:.4g}, planned is {planned:.4g}", SCALE_FIX)
    return None


def budget(subject: Subject) -> Verdict:
    """The ledger holds what the plan planned, and epsilon is spent, not overspent."""
    plan, ledger = subject.plan, subject.first[0].trained.ledger
    if plan is None:
        if ledger.mechanisms() or any(record.values["noise_norm"] for record in subject.records):
            return failed("it is not private, yet something is noised or accounted", "set private = True, or leave noise alone")
        return passed("no epsilon, no noise, no ledger")
    if fault := ledger.unaccounted(plan, subject.trial.task.clients):
        return failed(fault, LEDGER_FIX)
    spent, accountant = ledger.epsilon(plan.delta)
    text = f"epsilon {spent:.4g} of {plan.epsilon_target:g} ({accountant})"
    if spent > plan.epsilon_target:
        return failed(f"{text} is overspent", LEDGER_FIX)
    if spent < 0.99 * plan.epsilon_target:
        return failed(f"{text}: less is spent than was planned", LEDGER_FIX)
    return passed(text)


def determinism(subject: Subject) -> Verdict:
    """Two trainings of one seed are equal bit for bit, those of two seeds differ where there is noise, and the data stay as they are."""
    one, two = subject.first[0], subject.train()
    if difference := _unequal(subject, one, two):
        return failed(f"two trainings with one seed differ: {difference}", SEED_FIX)
    if subject.plan is not None and not _unequal(subject, one, subject.train(seed=1)):
        return failed("another seed gives the same result, though there is noise", SEED_FIX)
    return passed("the same seed gives the same bits, another seed others")


def data_untouched(subject: Subject) -> Verdict:
    """Rows and partition are as they were, also in the clients' hands."""
    trial, data = subject.trial, subject.data
    clients = subject.first[1].cohorts[0].clients
    # the data set itself keeps the fingerprint that it had
    if trial.cell.dataset_hash != replace(data).fingerprint:
        return failed("the data set has changed in memory", UNTOUCHED_FIX)
    again = partition_of(trial.cell, data).rows
    if not all(map(np.array_equal, again, trial.partition.rows)):
        return failed("the partition has changed in memory", UNTOUCHED_FIX)
    whose = [(f"client {client}'s", x, y, again[client]) for client, x, y in zip(clients.members, clients.x, clients.y, strict=True)]
    whose.append(("the clients' joined", clients.pooled.x, clients.pooled.y, np.concatenate(again)))
    for words, x, y, rows in whose:
        for name, held, given in (("rows", x, data.x_train[rows]), ("labels", y, data.y_train[rows])):
            if not np.array_equal(held.numpy(), given):
                return failed(f"{words} {name} are not what the partition gave", UNTOUCHED_FIX)
    return passed(f"partition {trial.partition.fingerprint} as it was")


class NudgedPool(WatchedPool):
    """A pool that moves every number of its messages to the next float."""

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.training.cohort.LocalPool`."""
        return [replace(sent, sums={name: _next(value) for name, value in sent.sums.items()}) for sent in super().round(round_, broadcast)]


def _next(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, torch.inf)) if value.is_floating_point() else value


def packing(subject: Subject) -> Verdict:
    """Clients may be packed onto actors in any way, and actors may compute in any order."""
    one = subject.first[0]
    nudged = cache(lambda: train(subject.build(), NudgedPool(subject.cohorts()), subject.plan, 0))
    for sizes, order in PACKINGS:
        two = train(subject.build(), WatchedPool(subject.cohorts(sizes), order), subject.plan, 0)
        if _not_close(one, two) and (difference := _not_close(one, two, nudged())):
            on = f"actors of {', '.join(map(str, sizes))} clients, computed in the order {', '.join(map(str, order))}"
            return failed(f"on {on}: {difference}", PACKING_FIX)
    return passed("the same on 1, 3 and 4 actors, in any order")


def serialisable(subject: Subject) -> Verdict:
    """Parameters go through JSON, messages through a wire."""
    params = subject.algorithm.params
    if type(params).model_validate(json.loads(params.model_dump_json())) != params:
        return failed("the parameters are not themselves after JSON", "let parameters be plain values and pydantic models")
    for round_, message in subject.tape.messages.items():
        if fault := _unsendable(message):
            return failed(f"round {round_}: {fault}", SEND_FIX)
    return passed("parameters and messages")


def _unsendable(message: Message) -> str:
    for name, value in message.sums.items():
        if not isinstance(value, Tensor):
            return f"'{name}' of the message is a {type(value).__name__}"
    for name, given in message.diagnostics.items():
        numbers = given.values if isinstance(given, Diagnostic) else given
        if strange := next((value for value in _leaves(numbers) if not isinstance(value, (*PLAIN, Tensor))), None):
            return f"diagnostic '{name}' of the message holds a {type(strange).__name__}"
    try:
        pickle.dumps(message)
    except Exception as error:
        return f"the message cannot be serialised ({type(error).__name__}: {_shortened(error)})"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def resume(subject: Subject) -> Verdict:
    """Going on from the checkpoint of any round, through the bytes of its file, equals the uninterrupted training."""
    whole = subject.first[0]
    some = sorted({0, 1, len(whole.progress) // 2, len(whole.progress) - 1} & set(range(len(whole.progress))))
    for at in (whole.progress[i] for i in some):
        kept = Checkpoints()
        try:
            kept.save(at)
        except Exception as error:
            text = f"the progress after {at.round} rounds cannot be saved ({type(error).__name__}: {_shortened(error)})"
            return failed(text, "keep tensors of their own memory in server.tensors and clients.state (clone views)")
        rest = train(subject.build(), WatchedPool(subject.cohorts()), subject.plan, 0, kept.load())
        if difference := _unequal(subject, whole, rest, at.round):
            return failed(f"going on after {at.round} of {len(whole.records)} rounds differs: {difference}", RESUME_FIX)
    return passed(f"the same after {', '.join(str(i + 1) for i in some)} of {len(whole.records)} rounds, through a file's bytes")


def restored(subject: Subject) -> Verdict:
    """A generator that is made again from what a run keeps of it, without public rows, is the same generator."""
    if not subject.algorithm.generates(subject.algorithm.params):
        return idle("a classifier is not kept")
    trained = subject.first[0].trained
    bare = replace(subject, trial=replace(subject.trial, task=replace(subject.trial.task, public=None)))
    again, _ = rounds.restored(bare.build(), copied(trained.state), subject.plan, Seeds(0))
    before, after = (drawn(made, subject.data, subject.trial.task.clients) for made in (trained.made, again))
    if same(before, after):
        return passed("the same rows from its saved state")
    return failed(
        f"made again from its saved state it generates other rows, by up to {float((before - after).abs().max()):.3g}", RESTORE_FIX
    )


def finite(subject: Subject) -> Verdict:
    """What was trained answers in the right shape: finite rows, or probabilities."""
    algorithm, data = subject.algorithm, subject.data
    labels, questions = torch.arange(data.classes).repeat(3), torch.from_numpy(data.x_test)
    try:
        said = answer(algorithm, subject.first[0].trained.made, labels, questions, torch.Generator().manual_seed(0))
    except WrongReturn as error:
        return failed(f"{line_of(error.method)}: {error.what}", f"return {error.expected}")
    return passed(f"{said.dtype} [n, {said.shape[1]}]".replace("torch.", ""))


def global_random(subject: Subject) -> Verdict:
    """Nothing draws from a global random generator."""
    if touched := subject.first[0].touched:
        return failed(f"the training draws from the global random generator of {' and '.join(touched)}", RANDOM_FIX)
    return passed("torch's, numpy's and Python's are as they were")


def _unequal(subject: Subject, one: Training, two: Training, start: int = 0) -> str:
    """The first thing, if any, in which two trainings differ by a bit; the second one began at round ``start``."""
    if difference := _records(one.records[start:], two.records):
        return difference
    if one.trained.ledger != two.trained.ledger:
        return "the ledgers"
    if one.trained.uplink_bytes != two.trained.uplink_bytes:
        return f"{one.trained.uplink_bytes} and {two.trained.uplink_bytes} bytes sent"
    clients = subject.trial.task.clients
    first, second = (drawn(training.trained.made, subject.data, clients) for training in (one, two))
    return "" if same(first, second) else f"what the result generates, by up to {float((first - second).abs().max()):.3g}"


def _records(one: Sequence[RoundRecord], two: Sequence[RoundRecord]) -> str:
    if len(one) != len(two):
        return f"{len(one)} and {len(two)} rounds"
    for first, second in zip(one, two, strict=True):
        for name in {**first.values, **second.values}:
            if (was := repr(first.values.get(name))) != (became := repr(second.values.get(name))):
                return f"round {first.round}, {name}: {was[:24]} and {became[:24]}"
    return ""


def _not_close(one: Training, two: Training, nudged: Training | None = None) -> str:
    """The first thing, if any, in which two trainings differ by more than the order of a sum, as far as ``nudged`` shows what that does."""
    for first, second in zip(one.records, two.records, strict=True):
        for name in ("sampled", "noise"):
            if first.values[name] != second.values[name]:
                return f"round {first.round}: {'other rows are sampled' if name == 'sampled' else 'other noise is drawn'}"
    if one.trained.ledger != two.trained.ledger:
        return "the ledgers differ"
    if one.trained.uplink_bytes != two.trained.uplink_bytes:
        return f"{one.trained.uplink_bytes} bytes sent became {two.trained.uplink_bytes}"
    for at, (before, after) in enumerate(zip(one.progress, two.progress, strict=True)):
        moved = {} if nudged is None else nudged.progress[at].tensors
        if difference := _tensors(before.tensors, after.tensors, ORDER * GROWTH_A_ROUND ** (before.round - 1), moved):
            return f"round {before.round - 1}: {difference}"
    return ""


def _tensors(one: Tensors, two: Tensors, order: float, nudged: Tensors) -> str:
    for name in {**one, **two}:
        if name not in one or name not in two or one[name].shape != two[name].shape:
            return f"'{name}' is not there, or has another shape"
        first, second = one[name].double(), two[name].double()
        amplified = AMPLIFIED * float((first - nudged[name].double()).norm()) if name in nudged else 0.0
        allowed = amplified + order * (math.sqrt(first.numel()) / 10 + float(first.norm()))
        if not same(first, second) and not float((first - second).norm()) <= allowed:
            return f"'{name}' differs by up to {float((first - second).abs().max()):.3g}"
    return ""
