"""What runs on slots. A job has a key, a name, a need and a method of a worker that does it, and
writes its own result line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedsim.errors import PluginError
from fedsim.evaluation.scores import Ceiling, LocalOnly
from fedsim.files import discard
from fedsim.grid.cells import identity
from fedsim.json_lines import dump, plain_json
from fedsim.partition import Partition
from fedsim.plugins.claims import compared
from fedsim.plugins.code_hash import harness_hash, is_shipped
from fedsim.plugins.registry import lookup
from fedsim.results.columns import row_of
from fedsim.results.lines import (
    RowError,
    as_trained,
    judgement_line,
    keep_state,
    read_state,
    reference_line,
    training_line,
)
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display
from fedsim.runs.manifest import now, versions
from fedsim.runs.prepare import Need, Prepared
from fedsim.runs.worker import Failure, Item, Judged, Progress
from fedsim.training.state import keep
from fedsim.training.trial import Outcome, Trial
from fedsim.words import setting

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import Audit, ClaimAudit

Put = Callable[[str], Any]
"""Gives a data set, by its key, as the engine holds it."""
Line = Mapping[str, Any]
_Cell = tuple[Trial, Line | None]


@dataclass(frozen=True)
class RunContext:
    """The grid, its run folder and its display: where jobs put their results."""

    prepared: Prepared
    store: ResultStore
    display: Display

    def finished(
        self, trial: Trial, training: Mapping[str, Any], judgement: Mapping[str, Any] | None = None
    ) -> None:
        """Show how a cell ended, by the lines of its training and of its judgement."""
        self.display.cell_finished(
            row_of(trial.cell.cell_id, trial.cell.label, training, judgement)
        )

    def refused(self, job: Job, failure: Failure) -> PluginError:
        """The message of a plug-in whose first training fails; its log has the traceback, and
        nothing else is written.
        """
        assert job.trial is not None
        self.store.log(job.trial.cell.cell_id, [failure.traceback.rstrip("\n")])
        grid = self.prepared.grid
        name = job.trial.cell.algorithm
        where = grid.location(
            "algorithms",
            next(i for i, entry in enumerate(grid.algorithms) if entry.name == name),
            "name",
        )
        what = (
            f"its first cell failed: {failure.summary()} "
            f"({self.store.folder.log(job.trial.cell.cell_id)})"
        )
        return PluginError(where, what, "correct it, or give keep_going for a failed row")


@dataclass(eq=False)
class Job:
    """One piece of work. Beside the cells one that fails leaves no line, so that the same command
    tries it again.

    Attributes:
        key: differs from that of every other job of a bench.
        name: what it is called in a message.
        asked: gives, with data sets as the engine holds them, the worker's method that does it, and
            its arguments.
        done: takes every item that comes of it but a failure.
        trial: a cell whose algorithm it runs; None: none.
        any_slot: whether it runs on a slot of any shape.
        limited: whether it is ended after the grid's ``cell_timeout``.
    """

    run: RunContext
    key: tuple[str, ...]
    name: str
    asked: Callable[[Put], tuple[Any, ...]]
    done: Callable[[Item], None]
    trial: Trial | None = None
    any_slot: bool = True
    limited: bool = False

    @property
    def need(self) -> Need:
        """What it needs: one actor."""
        return self.run.prepared.need

    @cached_property
    def plug_in(self) -> str:
        """The algorithm whose code it runs, where that is not shipped with fedsim; else empty."""
        if self.trial is None or is_shipped(lookup(self.trial.cell.algorithm)):
            return ""
        return self.trial.cell.algorithm

    def show_start(self) -> None:
        """Show that it runs now."""
        self.run.display.job_started(self.key, self.name)

    def take(self, item: Item) -> None:
        """Take what the worker yields; a result is written as it comes."""
        if isinstance(item, Failure):
            self.run.display.note(
                f"{self.name} failed; the same command tries again: {item.summary()}"
            )
        else:
            self.done(item)

    def again(self) -> Job:
        """The job that is left to do after its worker was lost."""
        return self


class CellJob(Job):
    """What a cell lacks: its training and the judgement of what that made, in the same worker; with
    a training's line the judgement alone.

    ``equal`` are further cells whose results are equal by construction; each has the line of its
    training, if there is one.
    """

    trial: Trial

    def __init__(
        self,
        run: RunContext,
        trial: Trial,
        training: Line | None = None,
        equal: Sequence[_Cell] = (),
    ) -> None:
        self.run = run
        if training is None:
            self.trial = trial
        else:
            self.trial = as_trained(trial, training)
        self.training = training
        self.equal = list(equal)
        self.key = ("cell", trial.cell.cell_id)
        self.name = f"{trial.cell.label} (cell {trial.cell.cell_id})"
        self.any_slot = training is not None
        self.limited = training is None
        self.asked = self._ask

    @property
    def need(self) -> Need:
        """Of a training all its actors."""
        if self.training is None:
            return self.run.prepared.need_of(self.trial)
        return self.run.prepared.need

    @property
    def cells(self) -> list[_Cell]:
        """All cells of it, each with the line of its training."""
        return [(self.trial, self.training), *self.equal]

    def _ask(self, put: Put) -> tuple[Any, ...]:
        """Train, from the last checkpoint if there is one; or judge by the tensors that the
        training left.
        """
        trial = self.trial
        folder = self.run.store.folder
        data = put(self.trial.data_key)
        if self.training is None:
            self._started("started")
            # in a list the data set stays a reference, for the worker to hand on to its cohort
            # actors
            return (
                "train",
                trial,
                data,
                [data],
                self._checkpoint.read_bytes() if self._checkpoint.exists() else None,
            )
        self._started("judged anew")
        return (
            "judge",
            trial,
            read_state(folder.state(trial.cell.training_id), self.training["state"]),
            data,
        )

    def show_start(self) -> None:
        """Show nothing yet: a cell is shown with its setting as it is asked for."""

    def _started(self, what: str) -> None:
        cell = self.trial.cell
        point = {
            "alpha": cell.concentration,
            "clients": cell.clients,
            "epsilon": cell.epsilon,
            "seed": cell.seed,
        }
        shown = setting(cell.label, cell.dataset.display, **point)  # type: ignore[arg-type]
        self.run.display.cell_started(cell.cell_id, shown)
        plan = f"plan {self.trial.plan}"
        sizes = f"clients per actor {self.trial.sizes}"
        self.run.store.log(
            self.trial.cell.cell_id,
            [f"{what} {now()}", f"cell {cell.model_dump_json()}", plan, sizes],
        )
        for other, _ in self.equal:
            self.run.store.log(
                other.cell.cell_id, [f"equal to cell {cell.cell_id} by construction: see its log"]
            )

    def take(self, item: Item) -> None:
        """Rounds and checkpoints as they come; then the training's lines, then the judgement's."""
        if isinstance(item, Progress):
            self._progress(item)
        elif isinstance(item, Outcome):
            self._end(item)
        elif isinstance(item, Judged) or (isinstance(item, Failure) and self.training is not None):
            self._judged(item)
        elif isinstance(item, Failure):
            self._fail(item)

    def again(self) -> Job:
        """Judging, once the training's line is written."""
        if self.training is None:
            return self
        return CellJob(self.run, self.trial, self.training, self.equal)

    @property
    def _checkpoint(self) -> Path:
        return self.run.store.folder.checkpoint(self.trial.cell.training_id)

    def _progress(self, progress: Progress) -> None:
        for trial, _ in self.cells:
            training = {"training_id": trial.cell.training_id}
            self.run.store.append(
                "rounds", ({**training, "round": r.round, **r.values} for r in progress.rounds)
            )
        lines = [
            f"round {record.round + 1}/{record.rounds} {dump(record.values)}"
            for record in progress.rounds
        ]
        self.run.store.log(
            self.trial.cell.cell_id,
            [*lines, progress.output.rstrip("\n")] if progress.output else lines,
        )
        if progress.rounds:
            last = progress.rounds[-1]
            self.run.display.round_done(self.trial.cell.cell_id, last.round + 1, last.rounds)
        if progress.checkpoint is not None:
            keep(self._checkpoint, progress.checkpoint)

    def _end(self, outcome: Outcome) -> None:
        """Keep what was made, then write the lines; the checkpoint, which may hold the key of
        secret noise, goes before.
        """
        prepared = self.run.prepared
        store = self.run.store
        clients = self.trial.cell.clients
        self.trial = self.trial.ended(outcome)
        self.run.store.log(self.trial.cell.cell_id, [f"trained {outcome}"])
        # An earlier start of a cell that is equal may have left a checkpoint of its own.
        for trial, _ in self.cells:
            discard(store.folder.checkpoint(trial.cell.training_id))
        names = prepared.data[self.trial.data_key].class_names
        lines = list[Line]()
        for trial, _ in self.cells:
            path = store.folder.state(trial.cell.training_id)
            own = outcome
            equal_to = None
            if trial is not self.trial:  # every client sends and gets the same
                equal_to = self.trial.cell.training_id
                up, down = (
                    size // clients * trial.cell.clients
                    for size in (outcome.uplink_bytes, outcome.downlink_bytes)
                )
                own = replace(outcome, uplink_bytes=up, downlink_bytes=down)
            if prepared.grid.resources.save_generators:
                state = keep_state(path, outcome.state)
            else:
                state = None
            lines.append(training_line(trial, own, versions(), names, state, equal_to))
        store.append("trainings", lines)
        self.training, *others = lines
        self.equal = [(trial, line) for (trial, _), line in zip(self.equal, others, strict=True)]

    def _fail(self, failure: Failure) -> None:
        if not failure.goes_on:
            discard(self._checkpoint)
        self.run.store.log(self.trial.cell.cell_id, [failure.traceback.rstrip("\n")])
        for trial, _ in self.cells:
            line = training_line(trial, error_of(failure), versions())
            self.run.store.append("trainings", [line])
            self.run.finished(trial, line)

    def _judged(self, end: Judged | Failure) -> None:
        self.run.store.log(
            self.trial.cell.cell_id,
            [end.traceback.rstrip("\n") if isinstance(end, Failure) else f"judged {end.judgement}"],
        )
        for trial, training in self.cells:
            assert training is not None
            if isinstance(end, Failure):
                line = judgement_line(trial, error_of(end), 0.0)
            else:
                line = judgement_line(trial, end.judgement, end.seconds)
            self.run.store.append("judgements", [line])
            self.run.finished(trial, training, line)


def references_of(run: RunContext, trial: Trial) -> tuple[Job, Job]:
    """A cell's ceiling and its local-only reference, whose keys end in those of their lines; a
    failed one leaves no line.
    """
    cell = trial.cell
    partition = trial.partition
    data = run.prepared.data[trial.data_key]
    common = {
        "data": data.fingerprint,
        "probe_c": cell.evaluation.probe_c,
        "code": harness_hash("evaluation"),
    }
    own = {"partition": partition.fingerprint, "scheme": cell.partition.model_dump(mode="json")}

    def reference(kind: str, facts: Mapping[str, Any], divided: Partition | None) -> Job:
        line = identity({"kind": kind, **facts})

        def ask(put: Put) -> tuple[Any, ...]:
            return (
                "reference",
                put(trial.data_key),
                divided,
                cell.partition,
                cell.evaluation.probe_c,
            )

        def take(item: Item) -> None:
            if isinstance(item, Ceiling | LocalOnly):
                run.store.append("references", [reference_line(line, item)])

        return Job(run, (kind, line), f"the {kind} reference", ask, take)

    return reference("ceiling", common, None), reference("local-only", common | own, partition)


def claim_audits(prepared: Prepared) -> tuple[ClaimAudit, ...]:
    """The audits of a grid's claims; none where the grid asks for none."""
    if prepared.grid.audit is None:
        return ()
    # late, for what audits compute with takes most of a second to import
    from fedsim.evidence.audit.audit import audits_of

    return audits_of(prepared.grid, prepared.grid.audit, prepared.trials)


def missing_audits(
    audits: Sequence[ClaimAudit], ended: Sequence[Mapping[str, Any]]
) -> list[ClaimAudit]:
    """Return the audits that lack pairs; ``ended`` are the lines of the audits that ended."""
    most_pairs: dict[str, int] = {}
    for line in ended:
        most_pairs[line["audit"]] = max(line["pairs"], most_pairs.get(line["audit"], 0))
    return [each for each in audits if most_pairs.get(each.run.key, 0) < each.run.count]


def audit_of(run: RunContext, audit: ClaimAudit) -> Job:
    """The audit of one claim, from the pairs that are there."""
    store = run.store
    key = audit.run.key
    trial = audit.trials[0]
    job_key = ("audit", key)
    pairs_done = 0

    def ask(put: Put) -> tuple[Any, ...]:
        nonlocal pairs_done
        known = store.audit_pairs(key)
        pairs_done = len(known)
        return "audit", trial.cell, audit.run, known

    def take(item: Item) -> None:
        nonlocal pairs_done
        if isinstance(item, Progress):
            store.append("pairs", ({"audit": key, **pair} for pair in item.pairs))
            pairs_done += len(item.pairs)
            run.display.job_progress(job_key, pairs_done, audit.run.count)
        else:
            outcome = cast("Audit", item)
            run.display.note(f"{audit.words}: {outcome.words()}")
            store.append("audits", [audit.line(outcome)])
            run.display.audit_finished()

    return Job(run, job_key, audit.words, ask, take, trial)


def check_of(run: RunContext, trial: Trial, *, quick: bool) -> Job:
    """The check of one cell's algorithm, parameters, unit and trust, which other cells share."""
    cell = trial.cell
    defaults = lookup(cell.algorithm).Params.model_validate({}).model_dump(mode="json")
    given = [
        f"{key}={plain_json(value)}"
        for key, value in cell.params.items()
        if value != defaults.get(key)
    ]

    def take(item: Item) -> None:
        if isinstance(item, list):
            run.store.append("checks", item)

    key = ("check", identity(checked_facts(trial)))
    name = f"the check of {cell.label}"
    return Job(run, key, name, lambda put: ("check", cell, given, quick), take, trial)


def checked_facts(trial: Trial) -> dict[str, Any]:
    """What a check is of, so that cells which differ in nothing else share it."""
    cell = trial.cell
    return {
        "source": cell.source,
        "unit": cell.unit,
        "trust": cell.trust,
        "params": compared(cell.params),
        "check": harness_hash("evidence"),
    }


def has_checked(line: Mapping[str, Any], trial: Trial, *, quick: bool) -> bool:
    """Whether a line of a check is of a cell; a quick check is not enough where a full one is asked
    for.
    """
    own = {**line, "params": compared(line["params"])}
    same = all(own.get(name) == value for name, value in checked_facts(trial).items())
    return same and (line["full"] or quick)


def error_of(failure: Failure) -> RowError:
    """A failure as a line has it."""
    return RowError(type=failure.type, message=failure.message, traceback=failure.traceback)
