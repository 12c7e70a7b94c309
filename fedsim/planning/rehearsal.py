"""The rehearsal: before anything runs, every plug-in of a grid takes the first round of each of its releases on made-up rows."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.batch import Batch
from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU
from fedsim.errors import NotPerExample, PluginError, UserError
from fedsim.grid.resolve import Resolved, Variant
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Server, Task, Tensors, Values
from fedsim.methods.phase import Phase
from fedsim.methods.products import Generator, Product, is_classifier, is_personal, own
from fedsim.planning.process_state import ProcessState
from fedsim.plugins.places import blamed, line_of, said
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import to_the_end, train

Rehearsal = Callable[[Variant, Task, float, float, str, torch.device, float], None]
ROWS, CLIENTS = 8, 2
LONGEST = 120.0
"""Seconds that a rehearsal may take; a grid's ``cell_timeout``, if that is shorter."""
SHIPPED = ("algorithms", "baselines", "fedsim")
"""Packages whose algorithms are rehearsed by fedsim's own tests."""
EVERYONE = {"sample_rate": 1.0, "client_rate": 1.0, "local_steps": 2}
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
    seconds = min(LONGEST, grid.resources.cell_timeout or LONGEST)
    shapes = sorted({(each.dim, each.classes) for each in data.values()})
    for variant in resolved.variants:
        if lookup(variant.name).__module__.partition(".")[0] in SHIPPED:
            continue
        for dim, classes in shapes:
            task = Task(dim, classes, min(CLIENTS, *grid.clients), grid.unit_kind, grid.trust, grid.evaluation.probe_c)
            try:
                for each in dict.fromkeys((CPU, device)):
                    where = grid.place("algorithms", variant.entry, "name")
                    (rehearsal or rehearse)(variant, task, max(grid.epsilon), grid.delta, where, each, seconds)
            except PluginError as error:
                if not keep_going:
                    raise
                refused.setdefault(variant.entry, error)
    return resolved.without(refused)


def rehearse(
    variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device = CPU, seconds: float = LONGEST
) -> None:
    """Run the first round of each release on made-up rows through the code that trains, and use what comes out.

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
    cls, process = lookup(variant.name, where), ProcessState()
    made_up = f"made-up data ({task.clients} clients with {ROWS} rows each, {task.dim} dimensions, {task.classes} classes)"
    try:
        with _in_time(seconds), torch.random.fork_rng(devices=[]):
            try:
                plan = solved_plan(build_algorithm(variant.name, variant.params, task), epsilon if cls.private else None, delta)
            except PluginError:
                raise
            except UserError:  # what the grid asks for cannot be planned, which is not the plug-in's mistake and told with its cell
                return
            cohort = made_up_cohort(variant.name, variant.params, task, plan, ROWS, device)
            _use(train_watched(cohort, plan), cohort.algorithm, cohort.clients.pooled.x)
            if plan is not None and device == CPU:  # the contract is the same on every device
                build_algorithm(variant.name, variant.params, task).check_contract()
    except NotPerExample as error:
        loss: Any = getattr(cls, "loss", getattr(cls, "statistics", cls))
        raise PluginError(where, f"on {made_up}, {line_of(loss)}: {error}", error.remedy) from error
    except PluginError:
        raise
    except _Unexpected as error:
        raise PluginError(where, f"on {made_up}, {error.what}", f"expected {error.expected}") from error
    except _Late as error:
        right = f"expected {cls.__name__} to train and sample in that time"
        raise PluginError(where, f"on {made_up}, {blamed(error, cls)}: still running after {seconds:g} s", right) from error
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        at = blamed(error, cls)
        if device == CPU:
            raise PluginError(where, f"on {made_up}, {at}: {said(error)}", f"expected {cls.__name__} to train and sample") from error
        fix = "it runs on the CPU: make tensors where the batch is (batch.x.new_zeros, fedsim.methods.normal), or set device: cpu"
        raise PluginError(where, f"on {made_up}, on {device.type}, {at}: {said(error)}", fix) from error
    finally:
        process.put_back()


class _Late(BaseException):
    """The time is up; a plug-in that goes on after any ``Exception`` does not go on after this."""


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


class _Unexpected(Exception):
    """A plug-in's method returned what nobody can use."""

    def __init__(self, method: Any, returned: str, expected: str) -> None:
        self.what, self.expected = f"{line_of(method)}: {method.__name__} returned {returned}", expected
        super().__init__(self.what, self.expected)


def made_up_cohort(
    name: str, params: dict[str, Any], task: Task, plan: PrivacyPlan | None, each: int, device: torch.device = CPU
) -> Cohort:
    """All clients with made-up rows, whose algorithm samples everyone and takes the first round of each release only.

    Args:
        name: of the algorithm.
        params: of the algorithm.
        task: the public facts.
        plan: the privacy plan, None without privacy.
        each: how many rows of unit norm a client has; where the unit is a group, two are one.
        device: where it trains.
    """
    count, clients = each * task.clients, range(task.clients)
    x = np.random.default_rng(0).standard_normal((count, task.dim), dtype=np.float32)
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), np.arange(count) % task.classes
    rows = tuple(np.arange(client * each, (client + 1) * each) for client in clients)
    groups = tuple(np.arange(each) // 2 for _ in clients) if task.unit == "group" else None
    cohort = Cohort(CohortSpec(name, params, task, plan, Seeds(0), tuple(clients), rows, groups), x, y, device)
    algorithm = build_algorithm(name, params, task)
    given = {name: value for name, value in EVERYONE.items() if name in type(algorithm.params).model_fields}
    algorithm.params = algorithm.params.model_copy(update=given)
    every = algorithm.schedule
    algorithm.schedule = lambda: (round_ for round_ in every() if round_.step == 0)  # type: ignore[method-assign]
    cohort.algorithm, cohort.phases = algorithm, algorithm.phases()
    return cohort


def train_watched(cohort: Cohort, plan: PrivacyPlan | None) -> Product:
    """What training yields, through :func:`fedsim.training.rounds.train`, while what the algorithm's methods return is looked at.

    Args:
        cohort: from :func:`made_up_cohort`.
        plan: the privacy plan, None without privacy.

    Raises:
        NotPerExample: a statistic is not per example.
        Exception: whatever the algorithm raises, and what says what it returned and should have.
    """
    _watch(cohort.algorithm)
    cohort.phases = cohort.algorithm.phases()
    steps = train(cohort.algorithm, LocalPool([cohort]), plan, Seeds(0), device=cohort.clients.device)
    return to_the_end(steps)[1].made


def _watch(algorithm: Algorithm) -> None:
    """Look at what this algorithm's methods return."""
    own = {name: getattr(algorithm, name) for name in ("loss", "phases", "label_counts") if hasattr(algorithm, name)}

    def loss(model: Any, batch: Batch) -> Mapping[str, Tensor]:
        parts = own["loss"](model, batch)
        if not isinstance(parts, Mapping) or not parts:
            raise _Unexpected(own["loss"], _described(parts), f"a mapping of loss parts by name, one number a row each: [{len(batch)}]")
        for name, part in parts.items():
            if not isinstance(part, Tensor) or part.shape != (len(batch),):
                raise _Unexpected(own["loss"], f"'{name}' as {_described(part)}", f"one number a row: [{len(batch)}]")
        return dict(parts)

    def phases() -> tuple[Phase, ...]:
        return tuple(_watched(algorithm, phase) for phase in own["phases"]())

    def label_counts(server: Server) -> Tensor | None:
        counts, classes = own["label_counts"](server), algorithm.task.classes
        if counts is not None and (not isinstance(counts, Tensor) or counts.shape != (classes,)):
            raise _Unexpected(own["label_counts"], _described(counts), f"a number a class, [{classes}], or None")
        return counts

    watched = {"loss": loss, "phases": phases, "label_counts": label_counts}
    vars(algorithm).update({name: watched[name] for name in own})


def _watched(algorithm: Algorithm, phase: Phase) -> Phase:
    """A phase that looks at what its functions return, and at the contract of what clients compute."""

    def at_clients(clients: Clients, round_: Round, told: Tensors) -> Message:
        message = phase.at_clients(clients, round_, told)
        if clients.plan is not None:
            algorithm.check_round(round_, told, clients.device)
        if not isinstance(message, Message):
            raise _Unexpected(phase.at_clients, _described(message), "a fedsim.methods.messages.Message, as clients.send makes it")
        return message

    def at_server(*args: Any) -> Values:
        values = phase.at_server(*args)
        if not isinstance(values, Mapping):
            raise _Unexpected(phase.at_server, _described(values), "a mapping of diagnostics by name, which may be empty")
        return values

    return replace(phase, at_clients=at_clients, at_server=at_server)


def _use(made: Product, algorithm: Algorithm, x: Tensor) -> None:
    """Sample or predict, by the shared version and by a client's own."""
    task, personal = algorithm.task, [own(made, 0)] if is_personal(made) else []
    # a personal classifier is used by its clients alone
    for each in personal if personal and is_classifier(made) else [made, *personal]:
        if not algorithm.generates() and is_classifier(each):
            _check(each.probabilities, each.probabilities(x), (len(x), task.classes), torch.float32, torch.float64)
        elif algorithm.generates() and isinstance(each, Generator):
            labels = torch.arange(task.classes, device=x.device).repeat_interleave(2)
            _check(each.sample, each.sample(labels, Seeds(0).torch(Purpose.SYNTHESIS)), (len(labels), task.dim), torch.float32)
        else:
            maker: Any = algorithm.generator if algorithm.generates() else algorithm.classifier
            raise _Unexpected(maker, _described(each), f"an object with {'sample' if algorithm.generates() else 'probabilities'}")


def _check(method: Any, returned: Any, shape: tuple[int, int], *dtypes: torch.dtype) -> None:
    expected = f"{' or '.join(map(_plain, dtypes))} {list(shape)}"
    if not isinstance(returned, Tensor) or returned.shape != shape or returned.dtype not in dtypes:
        raise _Unexpected(method, _described(returned), expected)
    if returned.requires_grad:
        raise _Unexpected(method, "a tensor with a gradient", "constants: sample and predict under torch.no_grad()")
    if not returned.isfinite().all():
        raise _Unexpected(method, "numbers that are not finite", f"finite {expected}")


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "nothing" if value is None else f"a {type(value).__name__}"
    return f"{_plain(value.dtype)} {list(value.shape)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
