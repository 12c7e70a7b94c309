"""The rehearsal: before anything runs, every plug-in of a grid trains for two rounds of each of its releases on made-up rows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings
from fedsim.data.public import PublicRows
from fedsim.device import CPU
from fedsim.errors import NotPerExample, PluginError, UserError, WrongReturn
from fedsim.grid.resolve import Resolved, Variant
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.contract import answer
from fedsim.methods.messages import Message, Round, Task, Tensors
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.planning.process import plug_in_code
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.places import blamed, line_of, said
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import to_the_end, train

Rehearsal = Callable[[Variant, Task, float, float, str, torch.device, float], None]
MADE_UP_ROWS, MOST_CLIENTS = 8, 2
LONGEST_REHEARSAL = 120.0
"""Seconds that a rehearsal may take; a grid's ``cell_timeout``, if that is shorter."""
BRIEF_PARAMS = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
"""Parameters that a rehearsal sets: no row is left to chance, and it takes a moment."""


def rehearse_grid(
    resolved: Resolved,
    data: Mapping[str, Embeddings],
    device: torch.device = CPU,
    *,
    keep_going: bool = False,
    rehearsal: Rehearsal | None = None,
) -> Resolved:
    """Rehearse every plug-in with every parameters and shape of data that the grid gives it.

    Args:
        resolved: the grid with its algorithms.
        data: its data sets; their shapes are read, not their rows.
        device: where cells will run; what passes on the CPU is rehearsed there too.
        keep_going: leave out the entries whose plug-in is refused.
        rehearsal: how one is rehearsed; default: :func:`rehearse`, in this process.

    Returns:
        The grid, without what is refused.

    Raises:
        PluginError: a plug-in is refused; under ``keep_going``: every one.
    """
    grid, refused = resolved.grid, dict[int, PluginError]()
    seconds = min(LONGEST_REHEARSAL, grid.resources.cell_timeout or LONGEST_REHEARSAL)
    shapes = sorted({(rows.dim, rows.classes) for rows in data.values()})
    for variant in resolved.variants:
        if is_shipped(lookup(variant.name)):
            continue
        for dim, classes in shapes:
            task = Task(dim, classes, min(MOST_CLIENTS, *grid.clients), grid.unit_kind, grid.trust, grid.evaluation.real_c)
            try:
                for place in dict.fromkeys((CPU, device)):
                    where = grid.place("algorithms", variant.entry, "name")
                    (rehearsal or rehearse)(variant, task, max(grid.epsilon), grid.delta, where, place, seconds)
            except PluginError as error:
                if not keep_going:
                    raise
                refused.setdefault(variant.entry, error)
    return resolved.without(refused)


def rehearse(
    variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device = CPU, seconds: float = LONGEST_REHEARSAL
) -> None:
    """Train on made-up rows by the code that trains, use what comes out, and try the contract.

    Args:
        variant: the algorithm with its parameters.
        task: the public facts; of real data's shape.
        epsilon: the budget; a large one, so that a result that is not finite is not the noise's fault.
        delta: of the budget.
        where: the place to name in an error.
        device: where it trains.
        seconds: that it may take.

    Raises:
        PluginError: an exception, a result of a wrong type, shape or dtype, a loss that is not per example, or no end in time; with file
            and line, and what was expected.
    """
    with plug_in_code():
        cls = lookup(variant.name, where)
    task = _with_made_up_rows(task)
    made_up = f"made-up data ({task.clients} clients with {MADE_UP_ROWS} rows each, {task.dim} dimensions, {task.classes} classes)"
    try:
        with plug_in_code(), _in_time(seconds), torch.random.fork_rng(devices=[]):
            try:
                plan = solved_plan(build_algorithm(variant.name, variant.params, task), epsilon if cls.private else None, delta)
            except PluginError:
                raise
            except UserError:  # the grid asks for what cannot be planned: not the plug-in's mistake, and reported with its cell
                return
            cohort = made_up_cohort(variant.name, variant.params, task, plan, MADE_UP_ROWS, device)
            _use(train_rehearsed(cohort, plan), cohort)
    except PluginError:
        raise
    except (Exception, SystemExit, _Late) as error:  # a plug-in may raise anything
        what, fix = _complaint(error, cls, device, seconds)
        raise PluginError(where, f"on {made_up}, {what}", fix) from error


def _complaint(error: BaseException, cls: type, device: torch.device, seconds: float) -> tuple[str, str]:
    """What is wrong, with file and line, and what would be right."""
    if isinstance(error, NotPerExample):
        return f"{line_of(getattr(cls, 'loss', getattr(cls, 'statistics', cls)))}: {error}", error.remedy
    if isinstance(error, WrongReturn):
        scalar = ", so without the mean or the sum over the batch (reduction='none')" if error.what.endswith(" []") else ""
        return f"{line_of(error.method)}: {error.what}", f"expected {error.expected}{scalar}"
    at, fix = blamed(error, cls), f"expected {cls.__name__} to train and sample"
    if isinstance(error, _Late):
        return f"{at}: still running after {seconds:g} s", f"{fix} in that time"
    if device == CPU:
        return f"{at}: {said(error)}", fix
    fix = "it runs on the CPU: make tensors where the batch is (batch.x.new_zeros, fedsim.methods.normal), or set device: cpu"
    return f"on {device.type}, {at}: {said(error)}", fix


class _Late(BaseException):
    """The time is up; a plug-in that catches every ``Exception`` does not catch this."""


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raise where the block stands after so many seconds, and again every second until it ends; for the main thread, others have no limit.

    A call into a library is raised in once it returns.
    """

    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, timer = signal.signal(signal.SIGALRM, late), signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def made_up_cohort(
    name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, count: int, device: torch.device = CPU
) -> Cohort:
    """All clients with made-up rows, whose algorithm samples everyone.

    Args:
        name: of the algorithm.
        params: of the algorithm; :data:`BRIEF_PARAMS` replaces what they are, where they allow it.
        task: the public facts; public rows are made up where it has none.
        plan: the privacy plan, None without privacy.
        count: rows of unit norm of a client; where the unit is a group, two are one.
        device: where it trains.
    """
    task = _with_made_up_rows(task)
    known, whole, clients = lookup(name).Params, count * task.clients, range(task.clients)
    brief = params | known.brief(BRIEF_PARAMS, ())
    with suppress(ValidationError):  # values that parameters allow one by one may not do together
        known.model_validate(brief)
        params = brief
    x = np.random.default_rng(0).standard_normal((whole, task.dim), dtype=np.float32)
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), np.arange(whole) % task.classes
    rows = tuple(np.arange(client * count, (client + 1) * count) for client in clients)
    groups = tuple(np.arange(count) // 2 for _ in clients) if task.unit == "group" else None
    return Cohort(CohortSpec(name, params, task, plan, Seeds(0), tuple(clients), rows, groups), x, y, device)


def _with_made_up_rows(task: Task) -> Task:
    return task if task.public is not None else replace(task, public=PublicRows.made_up(task.dim, task.classes))


def first_rounds(algorithm: Algorithm, count: int = 1) -> list[Round]:
    """The first rounds of each release."""
    return [round_ for round_ in algorithm.schedule() if round_.step < count]


def train_rehearsed(cohort: Cohort, plan: PrivacyPlan | None) -> Product:
    """What two rounds of each release make, by :func:`fedsim.training.rounds.train`; on the CPU the contract is tried, too.

    Args:
        cohort: from :func:`made_up_cohort`.
        plan: the privacy plan, None without privacy.

    Raises:
        NotPerExample: a loss or a statistic is not per example.
        WrongReturn: a method of the algorithm returned what cannot be used.
        Exception: whatever the algorithm raises.
    """
    algorithm: Algorithm = type(cohort.algorithm)(cohort.algorithm.params, cohort.algorithm.task)
    pool = _TriedPool([cohort], algorithm if plan is not None and cohort.clients.device == CPU else None)
    return to_the_end(train(algorithm, pool, plan, Seeds(0), device=cohort.clients.device, schedule=first_rounds(algorithm, 2)))[1].made


class _TriedPool(LocalPool):
    """Clients; after each round they compute, the contract of ``tried`` is tried for it."""

    def __init__(self, cohorts: Sequence[Cohort], tried: Algorithm | None) -> None:
        super().__init__(cohorts)
        self.tried = tried

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        messages = super().round(round_, broadcast)
        if self.tried is not None:
            self.tried.check_contract(round_, broadcast)
        return messages


def _use(made: Product, cohort: Cohort) -> None:
    """Sample or predict, by the shared version and by a client's own."""
    algorithm, x, personal = cohort.algorithm, cohort.clients.pooled.x, [own(made, 0)] if is_personal(made) else []
    labels = torch.arange(algorithm.task.classes, device=x.device).repeat_interleave(2)
    # a personal classifier is used by its clients alone
    for version in personal if personal and is_classifier(made) else [made, *personal]:
        answer(algorithm, version, labels, x, Seeds(0).torch(Purpose.SYNTHESIS))
