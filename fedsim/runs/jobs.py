"""Jobs: what runs on slots, and writes its own result lines.

:class:`Job` is one piece of work for a worker; :class:`CellJob` trains and evaluates a cell. The
other jobs are in :mod:`fedsim.runs.side_jobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.errors import PluginError
from fedsim.files import discard
from fedsim.json_lines import dump
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.results.columns import Line, row_of
from fedsim.results.lines import (
    RowError,
    as_trained,
    evaluation_line,
    keep_state,
    read_state,
    training_line,
)
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display
from fedsim.runs.items import Evaluated, Failure, Item, Progress
from fedsim.runs.manifest import now, versions
from fedsim.runs.prepare import Need, Prepared
from fedsim.training.state import keep
from fedsim.training.trial import Outcome, Trial
from fedsim.words import setting

Put = Callable[[str], Any]
"""Returns the data set with a key, in the form in which the engine passes it to a worker."""


@dataclass(frozen=True)
class RunContext:
    """The grid, its run folder and its display, which all jobs share."""

    prepared: Prepared
    store: ResultStore
    display: Display

    def finished(self, trial: Trial, training: Line, evaluation: Line | None = None) -> None:
        """Show how a cell ended.

        Args:
            trial: the cell.
            training: its training line.
            evaluation: its evaluation line; None if the training failed.
        """
        row = row_of(trial.cell.cell_id, trial.cell.label, training, evaluation)
        self.display.cell_finished(row)

    def refused(self, job: Job, failure: Failure) -> PluginError:
        """Return the error for a plug-in whose first training fails.

        The traceback goes to the log of the cell; no result line is written.
        """
        assert job.trial is not None
        cell = job.trial.cell
        self.store.log(cell.cell_id, [failure.traceback.rstrip("\n")])
        grid = self.prepared.grid
        names = [entry.name for entry in grid.algorithms]
        where = grid.location("algorithms", names.index(cell.algorithm), "name")
        log = self.store.folder.log(cell.cell_id)
        what = f"its first cell failed: {failure.summary()} ({log})"
        return PluginError(where, what, "correct it, or give keep_going for a failed row")


@dataclass(eq=False)
class Job:
    """One piece of work for a worker.

    If it fails, no line is written, so that the same command tries it again. Cells are the
    exception (:class:`CellJob`): their failures are recorded.

    Attributes:
        run: the grid, its run folder and its display.
        key: it differs from the key of every other job of a bench.
        name: the name of the job in messages.
        asked: returns the name of the worker's method that does the job, then its arguments.
        done: takes every item that the worker yields, but no failure.
        trial: a cell whose algorithm the job runs; None if it runs none.
        any_slot: whether the job runs on a slot of any shape.
        limited: whether the job is ended after the grid's ``cell_timeout``.
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
        """The actors that the job needs: one."""
        return self.run.prepared.need

    @cached_property
    def plug_in(self) -> str:
        """The name of the algorithm that the job runs if it is not shipped, else an empty text."""
        if self.trial is None or is_shipped(lookup(self.trial.cell.algorithm)):
            return ""
        return self.trial.cell.algorithm

    def show_start(self) -> None:
        """Show that the job is running."""
        self.run.display.job_started(self.key, self.name)

    def take(self, item: Item) -> None:
        """Take an item from the worker; a result is written at once."""
        if isinstance(item, Failure):
            self.run.display.note(
                f"{self.name} failed; the same command tries again: {item.summary()}"
            )
        else:
            self.done(item)

    def again(self) -> Job:
        """Return the job that is left to do after the worker was lost."""
        return self


@dataclass(frozen=True)
class JobCell:
    """A cell of a job, with its training line once there is one."""

    trial: Trial
    training: Line | None = None


class CellJob(Job):
    """Trains and evaluates a cell; only evaluates it if its training is already recorded.

    Args:
        run: the grid, its run folder and its display.
        trial: the cell.
        training: its training line if there is one.
        equal: further cells that get the same results, because another partition cannot change
            them.
    """

    trial: Trial

    def __init__(
        self,
        run: RunContext,
        trial: Trial,
        training: Line | None = None,
        equal: Sequence[JobCell] = (),
    ) -> None:
        super().__init__(
            run=run,
            key=("cell", trial.cell.cell_id),
            name=f"{trial.cell.label} (cell {trial.cell.cell_id})",
            asked=self._ask,
            done=self.take,
            trial=trial,
            any_slot=training is not None,
            limited=training is None,
        )
        if training is not None:
            self.trial = as_trained(trial, training)
        self.training = training
        self.equal = list(equal)

    @property
    def need(self) -> Need:
        """The actors that the job needs: all actors of the cell for a training, else one."""
        if self.training is None:
            return self.run.prepared.need_of(self.trial)
        return self.run.prepared.need

    @property
    def cells(self) -> list[JobCell]:
        """All cells of the job; the first one is trained."""
        return [JobCell(self.trial, self.training), *self.equal]

    def show_start(self) -> None:
        """Show nothing yet: a cell is shown with its setting when its worker is asked."""

    def take(self, item: Item) -> None:
        """Take an item from the worker, and write the lines that follow from it."""
        if isinstance(item, Progress):
            self._record_progress(item)
        elif isinstance(item, Outcome):
            self._record_training(item)
        elif isinstance(item, Evaluated):
            self._record_evaluation(item)
        elif isinstance(item, Failure):
            if self.training is None:
                self._record_failed_training(item)
            else:
                self._record_failed_evaluation(item)

    def again(self) -> Job:
        """Return the job that is left: only the evaluation, once the training line is written."""
        if self.training is None:
            return self
        return CellJob(self.run, self.trial, self.training, self.equal)

    @property
    def _checkpoint(self) -> Path:
        return self.run.store.folder.checkpoint(self.trial.cell.training_id)

    def _ask(self, put: Put) -> tuple[Any, ...]:
        """Return the worker's method and arguments: ``train`` or ``evaluate``."""
        data = put(self.trial.data_key)
        if self.training is None:
            self._show_cell("started")
            checkpoint = self._checkpoint.read_bytes() if self._checkpoint.exists() else None
            # Within a list the data set stays a reference, which the worker hands on to the other
            # actors of its slot.
            return "train", self.trial, data, [data], checkpoint
        self._show_cell("evaluated anew")
        path = self.run.store.folder.state(self.trial.cell.training_id)
        state = read_state(path, self.training["state"])
        return "evaluate", self.trial, state, data

    def _show_cell(self, event: str) -> None:
        """Show the cell as running, and begin its log."""
        cell = self.trial.cell
        point: dict[str, Any] = {
            "alpha": cell.concentration,
            "clients": cell.clients,
            "epsilon": cell.epsilon,
            "seed": cell.seed,
        }
        label = setting(cell.label, cell.dataset.display, **point)
        self.run.display.cell_started(cell.cell_id, label)
        self._log(
            f"{event} {now()}",
            f"cell {cell.model_dump_json()}",
            f"plan {self.trial.plan}",
            f"clients per actor {self.trial.sizes}",
        )
        for twin in self.equal:
            self.run.store.log(
                twin.trial.cell.cell_id,
                [f"equal to cell {cell.cell_id} by construction: see its log"],
            )

    def _log(self, *lines: str) -> None:
        """Append lines to the log of the cell."""
        self.run.store.log(self.trial.cell.cell_id, lines)

    def _record_progress(self, progress: Progress) -> None:
        """Write the finished rounds, the printed text and a new checkpoint."""
        for cell in self.cells:
            training_id = cell.trial.cell.training_id
            self.run.store.append(
                "rounds",
                (
                    {"training_id": training_id, "round": record.round, **record.values}
                    for record in progress.rounds
                ),
            )
        texts = [
            f"round {record.round + 1}/{record.rounds} {dump(record.values)}"
            for record in progress.rounds
        ]
        if progress.output:
            texts.append(progress.output.rstrip("\n"))
        self._log(*texts)
        if progress.rounds:
            last = progress.rounds[-1]
            self.run.display.round_done(self.trial.cell.cell_id, last.round + 1, last.rounds)
        if progress.checkpoint is not None:
            keep(self._checkpoint, progress.checkpoint)

    def _record_training(self, outcome: Outcome) -> None:
        """Save what the training left, then write the training lines.

        The checkpoints are removed first, because they may hold the key of secret noise.
        """
        store = self.run.store
        self.trial = self.trial.ended(outcome)
        self._log(f"trained {outcome}")
        # An earlier start of an equal cell may have left another checkpoint.
        for cell in self.cells:
            discard(store.folder.checkpoint(cell.trial.cell.training_id))
        lines = [self._training_line_of(cell.trial, outcome) for cell in self.cells]
        store.append("trainings", lines)
        self.training, *other_lines = lines
        self.equal = [
            JobCell(twin.trial, line) for twin, line in zip(self.equal, other_lines, strict=True)
        ]

    def _training_line_of(self, trial: Trial, outcome: Outcome) -> Line:
        """Return the training line of a cell of the job, after saving what its training left."""
        prepared = self.run.prepared
        equal_to = None
        if trial is not self.trial:
            equal_to = self.trial.cell.training_id
            # Every client sends and receives the same number of bytes.
            trained_clients = self.trial.cell.clients
            clients = trial.cell.clients
            outcome = replace(
                outcome,
                uplink_bytes=outcome.uplink_bytes // trained_clients * clients,
                downlink_bytes=outcome.downlink_bytes // trained_clients * clients,
            )
        state = None
        if prepared.grid.resources.save_generators:
            path = self.run.store.folder.state(trial.cell.training_id)
            state = keep_state(path, outcome.state)
        class_names = prepared.data[self.trial.data_key].class_names
        return training_line(trial, outcome, versions(), class_names, state, equal_to)

    def _record_failed_training(self, failure: Failure) -> None:
        if not failure.goes_on:
            discard(self._checkpoint)
        self._log(failure.traceback.rstrip("\n"))
        for cell in self.cells:
            line = training_line(cell.trial, error_of(failure), versions())
            self.run.store.append("trainings", [line])
            self.run.finished(cell.trial, line)

    def _record_evaluation(self, evaluation: Evaluated) -> None:
        self._log(f"evaluated {evaluation.evaluation}")
        for cell in self.cells:
            line = evaluation_line(cell.trial, evaluation.evaluation, evaluation.seconds)
            self._finish(cell, line)

    def _record_failed_evaluation(self, failure: Failure) -> None:
        self._log(failure.traceback.rstrip("\n"))
        for cell in self.cells:
            self._finish(cell, evaluation_line(cell.trial, error_of(failure), 0.0))

    def _finish(self, cell: JobCell, evaluation: Line) -> None:
        """Write the evaluation line of a trained cell, and show how the cell ended."""
        assert cell.training is not None
        self.run.store.append("evaluations", [evaluation])
        self.run.finished(cell.trial, cell.training, evaluation)


def error_of(failure: Failure) -> RowError:
    """Return a failure in the form in which a result line has it."""
    return RowError(type=failure.type, message=failure.message, traceback=failure.traceback)
