"""Checks of what an algorithm leaves behind: in its inputs, in global random states, on a wire and in a file."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import WrongReturn
from fedsim.evidence.check.subject import Subject, drawn, same
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed
from fedsim.grid.sets import partition_of
from fedsim.methods.contract import answer
from fedsim.methods.messages import Diagnostic, Message
from fedsim.methods.products import is_classifier, own
from fedsim.plugins.places import line_of
from fedsim.seeds import Seeds
from fedsim.training import rounds
from fedsim.training.checkpoint import Checkpoints
from fedsim.training.state import copied

ROWS_SHOWN = 20
"""Rows that a classifier is shown one after another."""

PLAIN = (bool, int, float, str, type(None), np.floating, np.integer)


def global_random(subject: Subject) -> Verdict:
    """Nothing draws from a global random generator."""
    touched = subject.first[0].touched
    if touched:
        fix = (
            "pass generator=... from the seed tree (clients.seeds, server.seeds) to every draw; "
            "a layer that is built draws its weights, so copy server.model (copy.deepcopy) where a second model is needed"
        )
        return failed(f"the training draws from the global random generator of {' and '.join(touched)}", fix)
    return passed("torch's, numpy's and Python's are as they were")


def data_untouched(subject: Subject) -> Verdict:
    """Rows and partition are as they were, also in the clients' hands."""
    trial, data, cell = subject.trial, subject.data, subject.trial.cell
    fix = "compute on copies; neither rows nor labels are an algorithm's to change"
    # the data set itself keeps the fingerprint that it had
    if cell.dataset_hash != replace(data).fingerprint:
        return failed("the data set has changed in memory", fix)
    again = partition_of(cell, data).rows
    if not all(map(np.array_equal, again, trial.partition.rows)):
        return failed("the partition has changed in memory", fix)
    clients = subject.first[1].cohorts[0].clients
    whose = [(f"client {client}'s", x, y, again[client]) for client, x, y in zip(clients.members, clients.x, clients.y, strict=True)]
    whose.append(("the clients' joined", clients.pooled.x, clients.pooled.y, np.concatenate(again)))
    for words, x, y, rows in whose:
        for name, held, given in (("rows", x, data.x_train[rows]), ("labels", y, data.y_train[rows])):
            if not np.array_equal(held.numpy(), given):
                return failed(f"{words} {name} are not what the partition gave", fix)
    return passed(f"partition {trial.partition.fingerprint} as it was")


def public_rows(subject: Subject) -> Verdict:
    """The public rows are what they were, for server and clients: nothing of a private row comes to anybody as public."""
    trial, given = subject.trial, subject.data.public
    if trial.cell.public_hash is None or given is None:
        return passed("it uses none")
    held = [trial.task.public, *(cohort.algorithm.task.public for cohort in subject.first[1].cohorts)]
    if any(rows is not given for rows in held):
        what = "a training put other rows in the place of task.public"
    elif replace(given).fingerprint != trial.cell.public_hash:
        what = "a training wrote into task.public"
    else:
        return passed("the grid's, before and after a training")
    return failed(what, "leave task.public as it is; what is computed from a private row is a release, whatever it is called")


def serialisable(subject: Subject) -> Verdict:
    """Parameters go through JSON, messages through a wire, the progress through a safetensors file."""
    params = subject.algorithm.params
    fix = "let parameters be plain values and pydantic models"
    if type(params).model_validate(json.loads(params.model_dump_json())) != params:
        return failed("the parameters are not themselves after JSON", fix)
    for round_, message in subject.tape.messages.items():
        if fault := _unsendable(message):
            return failed(f"round {round_}: {fault}", "send tensors in sums, tensors or numbers in diagnostics, nothing else")
    with tempfile.TemporaryDirectory() as folder:
        for at in subject.first[0].progress:
            try:
                Checkpoints(Path(folder) / "cell.safetensors").save(at)
            except Exception as error:
                text = f"the progress after round {at.round - 1} cannot be saved ({type(error).__name__}: {_first_line(error)})"
                return failed(text, "keep tensors of their own memory in server.tensors and clients.state (clone views)")
    return passed("parameters, messages and checkpoints")


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
        return f"the message cannot be serialised ({type(error).__name__}: {_first_line(error)})"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]


def restored(subject: Subject) -> Verdict:
    """A generator that is made again from what a run keeps of it, without public rows, is the same generator."""
    if not (algorithm := subject.algorithm).generates(algorithm.params):
        return idle("a classifier is not kept")
    trained = subject.first[0].trained
    bare = replace(subject, trial=replace(subject.trial, task=replace(subject.trial.task, public=None)))
    again, _ = rounds.restored(bare.build(), copied(trained.state), subject.plan, Seeds(0))
    before, after = (drawn(made, subject.data, subject.trial.task.clients) for made in (trained.made, again))
    if not same(before, after):
        fix = "make the generator from the server's model and tensors, the codes and seeds, and from nothing else"
        return failed(f"made again from its saved state it generates other rows, by up to {float((before - after).abs().max()):.3g}", fix)
    return passed("the same rows from its saved state")


def made(subject: Subject) -> Verdict:
    """What was trained answers in the right shape: finite rows, or probabilities."""
    algorithm, data = subject.algorithm, subject.data
    labels, questions = torch.arange(data.classes).repeat(3), torch.from_numpy(data.x_test)
    try:
        said = answer(algorithm, subject.first[0].trained.made, labels, questions, torch.Generator().manual_seed(0))
    except WrongReturn as error:
        return failed(f"{line_of(error.method)}: {error.what}", f"return {error.expected}")
    return passed(f"{said.dtype} [n, {said.shape[1]}]".replace("torch.", ""))


def predictions(subject: Subject) -> Verdict:
    """What a classifier predicts of a row depends on no other row that it was shown: a tuned cell scores it on private rows.

    One held-out unit may change the score by its own prediction alone (:mod:`fedsim.privacy.selection`).
    """
    made = subject.first[0].trained.made
    if not is_classifier(made):
        return idle("a generator is shown no row")
    rows = torch.from_numpy(subject.data.x_train[:ROWS_SHOWN])
    first = own(made, 0).probabilities(rows[:1])
    for row in rows[1:]:
        own(made, 0).probabilities(row[None])
    again = own(made, 0).probabilities(rows[:1])
    if not same(first, again):
        fix = "let probabilities depend on the row that it is given and on the server's state, and keep nothing of earlier rows"
        return failed(f"what it predicts of a row changes by {float((first - again).abs().max()):.3g} after other rows", fix)
    return passed("the same prediction of a row before and after others")


def sent_bytes(subject: Subject) -> Verdict:
    """What a round sends is counted; the count is printed beside the size of the clients' sum."""
    training = subject.first[0]
    rounds, clients = len(training.records), subject.trial.task.clients
    sent = training.trained.uplink_bytes / rounds
    weight = sum(4 * math.prod(value.shape) for i in range(rounds) for value in subject.tape.messages[i].sums.values()) / rounds
    if sent == 0 and subject.plan is None:
        return idle("nothing is said to be sent, and it is not private")
    if sent <= 0 < weight:
        return failed("no byte is said to be sent", "set Message.uplink_bytes to what the clients would send over a network")
    return passed(f"{sent:,.0f} bytes a round by {clients} clients; their sum weighs {weight:,.0f}")
