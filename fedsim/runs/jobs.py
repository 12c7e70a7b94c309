"""Defines jobs, the pieces of work of a bench. Each job writes its own result lines.

A job runs on a slot, which is a group of worker processes. :class:`CellJob` trains and evaluates a
cell. The other jobs are made in :mod:`fedsim.runs.job_list`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.errors import PluginError
from fedsim.evaluation.evaluate import EvaluationResult
from fedsim.files import discard
from fedsim.json_lines import dump
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.results.columns import row_of
from fedsim.results.lines import (
    RowError,
    as_trained,
    evaluation_line,
    keep_state,
    read_state,
    training_line,
)
from fedsim.results.records import EvaluationRecord, TrainingRecord
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


@dataclass(eq=False)
class Job:
    """One piece of work for a worker.

    If it fails, no line is written, so that the same command tries it again. Cells are the
    exception (:class:`CellJob`): their failures are recorded.

    Attributes:
        run: the grid, its run folder and its display.
        key: the key of the job, unique within a bench; its first part is the kind of job.
        name: the name of the job in messages.
        request: returns the name of the worker's method that does the job, then its arguments.
        record: writes what follows from an item of the worker that is no failure.
        trial: a cell whose algorithm the job runs; None if it runs none.
    """

    run: RunContext
    key: tuple[str, ...]
    name: str
    request: Callable[[Put], tuple[Any, ...]]
    record: Callable[[Item], None]
    trial: Trial | None = None

    @property
    def trains(self) -> bool:
        """Whether the job is to train a cell.

        Then it needs a slot with all actors of the cell, and it is ended after the grid's
        ``cell_timeout``. Any other job runs on a slot of any shape.
        """
        return False

    @property
    def need(self) -> Need:
        """The actors that the job needs: one.

        Every actor of a bench has the same CPUs and GPUs, because the scheduler counts room in
        actors.
        """
        return self.run.prepared.need

    @property
    def may_run_again(self) -> bool:
        """Whether the job can be asked for again after the loss of its worker."""
        return True

    @cached_property
    def plug_in(self) -> str:
        """The name of the algorithm that the job runs if it is not shipped, else an empty text."""
        if self.trial is None or is_shipped(lookup(self.trial.cell.algorithm)):
            return ""
        return self.trial.cell.algorithm

    def take(self, item: Item) -> None:
        """Take an item from the worker; a result is written at once."""
        if isinstance(item, Failure):
            self.fail(item)
        else:
            self.record(item)

    def fail(self, failure: Failure) -> None:
        """Show the failure of the job."""
        self.run.display.note(
            f"{self.name} failed; the same command tries again: {failure.summary()}"
        )


class CellJob(Job):
    """Trains and evaluates a cell; only evaluates it if its training is already recorded.

    Args:
        run: the grid, its run folder and its display.
        trial: the cell.
        training: the training line of the cell; None if it is to be trained.

    Attributes:
        trainings: the training lines of the cell and of the equal cells; empty before the training.
        equal: further cells that get the same results, because another partition cannot change
            them.
    """

    trial: Trial

    def __init__(
        self,
        run: RunContext,
        trial: Trial,
        training: TrainingRecord | None = None,
    ) -> None:
        self.trainings: list[TrainingRecord] = []
        self.equal: list[Trial] = []
        if training is not None:
            self.trainings.append(training)
            trial = as_trained(trial, training)
        cell = trial.cell
        name = setting(
            cell.label,
            cell.dataset.display,
            alpha=cell.concentration,
            clients=cell.clients,
            epsilon=cell.epsilon,
            seed=cell.seed,
        )
        super().__init__(
            run=run,
            key=("cell", cell.cell_id),
            name=name,
            request=self._request,
            record=self._record,
            trial=trial,
        )

    @property
    def trains(self) -> bool:
        """Whether the cell has no training line yet."""
        return not self.trainings

    @property
    def need(self) -> Need:
        """The actors that the job needs: all actors of the cell for a training, else one."""
        if self.trains:
            return self.run.prepared.need_of(self.trial)
        return self.run.prepared.need

    @property
    def may_run_again(self) -> bool:
        """Whether the cell is not trained yet, or what its training left was saved."""
        return self.trains or self.trainings[0]["state"] is not None

    @property
    def trials(self) -> list[Trial]:
        """All cells of the job; the first one is trained."""
        return [self.trial, *self.equal]

    def _record(self, item: Item) -> None:
        """Write the lines that follow from an item of the worker."""
        if isinstance(item, Progress):
            self._record_progress(item)
        elif isinstance(item, Outcome):
            self._record_training(item)
        elif isinstance(item, Evaluated):
            self._log(f"evaluated {item.evaluation}")
            self._record_evaluation(item.evaluation, item.seconds)

    def plugin_error(self, failure: Failure) -> PluginError:
        """Return the error for a plug-in whose first training fails.

        The traceback goes to the log of the cell; no result line is written.
        """
        self._log(failure.traceback.rstrip("\n"))
        cell = self.trial.cell
        grid = self.run.prepared.grid
        names = [getattr(entry, "name", "") for entry in grid.algorithms]
        where = grid.location("algorithms", names.index(cell.algorithm), "name")
        log = self.run.store.folder.log(cell.cell_id)
        problem = f"the first cell of this method failed: {failure.summary()} (log: {log})"
        return PluginError(
            where,
            problem,
            "correct the method, or give `keep_going=True` to record failed cells and go on",
        )

    @property
    def _checkpoint(self) -> Path:
        return self.run.store.folder.checkpoint(self.trial.cell.training_id)

    def _request(self, put: Put) -> tuple[Any, ...]:
        """Begin the log, and return the worker's method (train or evaluate) and its arguments.

        Raises:
            UserError: The tensors that the training left cannot be read, or were changed.
        """
        data = put(self.trial.data_key)
        if self.trains:
            self._begin_log("started")
            checkpoint = self._checkpoint.read_bytes() if self._checkpoint.exists() else None
            # Ray passes the value of a reference, but leaves one within a list as it is. The worker
            # hands the reference in the list on to the other actors of its slot.
            return "train", self.trial, data, [data], checkpoint
        self._begin_log("evaluated anew")
        path = self.run.store.folder.state(self.trial.cell.training_id)
        state = read_state(path, self.trainings[0]["state"])
        return "evaluate", self.trial, state, data

    def _begin_log(self, event: str) -> None:
        """Begin the log of the cell, and refer to it in the logs of the equal cells."""
        cell = self.trial.cell
        self._log(
            f"{event} {now()}",
            f"cell {cell.model_dump_json()}",
            f"plan {self.trial.plan}",
            f"clients per actor {self.trial.sizes}",
        )
        reference = f"equal to cell {cell.cell_id} by construction: see its log"
        for trial in self.equal:
            self.run.store.log(trial.cell.cell_id, [reference])

    def _log(self, *lines: str) -> None:
        """Append lines to the log of the cell."""
        self.run.store.log(self.trial.cell.cell_id, lines)

    def _record_progress(self, progress: Progress) -> None:
        """Write the finished rounds, the printed text and a new checkpoint."""
        texts = []
        for record in progress.rounds:
            texts.append(f"round {record.round + 1}/{record.rounds} {dump(record.values)}")
            self.run.display.job_progress(self.key, record.round + 1, record.rounds)
        if progress.output:
            texts.append(progress.output.rstrip("\n"))
        self._log(*texts)
        for trial in self.trials:
            lines = [
                {
                    "training_id": trial.cell.training_id,
                    "round": record.round,
                    **record.values,
                }
                for record in progress.rounds
            ]
            self.run.store.append("rounds", lines)
        if progress.checkpoint is not None:
            keep(self._checkpoint, progress.checkpoint)

    def _record_training(self, outcome: Outcome) -> None:
        """Save what the training left, then write the training lines.

        The checkpoints are removed first, because they may hold the key of secret noise.
        """
        store = self.run.store
        # The cell gets the parameters and the plan that its search chose.
        self.trial = self.trial.ended(outcome)
        self._log(f"trained {outcome}")
        # An earlier start of an equal cell may have left another checkpoint.
        for trial in self.trials:
            discard(store.folder.checkpoint(trial.cell.training_id))
        self.trainings = [self._training_line_of(trial, outcome) for trial in self.trials]
        store.append("trainings", self.trainings)

    def _training_line_of(self, trial: Trial, outcome: Outcome) -> TrainingRecord:
        """Return the training line of a cell of the job, after saving what its training left."""
        prepared = self.run.prepared
        equal_to = None
        if trial is not self.trial:
            equal_to = self.trial.cell.training_id
            # Every client sends and receives equally many bytes, so totals grow with the clients.
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

    def fail(self, failure: Failure) -> None:
        """Write the lines of a training or an evaluation that failed."""
        self._log(failure.traceback.rstrip("\n"))
        error = RowError(type=failure.type, message=failure.message, traceback=failure.traceback)
        if self.trainings:
            self._record_evaluation(error, 0.0)
            return
        if not failure.goes_on:
            discard(self._checkpoint)
        for trial in self.trials:
            line = training_line(trial, error, versions())
            self.run.store.append("trainings", [line])
            self._show_end(trial, line)

    def _record_evaluation(self, end: EvaluationResult | RowError, seconds: float) -> None:
        """Write the evaluation lines of the trained cells, and show how they ended."""
        for trial, training in zip(self.trials, self.trainings, strict=True):
            line = evaluation_line(trial, end, seconds)
            self.run.store.append("evaluations", [line])
            self._show_end(trial, training, line)

    def _show_end(
        self, trial: Trial, training: TrainingRecord, evaluation: EvaluationRecord | None = None
    ) -> None:
        """Show how a cell ended; it has no evaluation line if its training failed."""
        row = row_of(trial.cell.cell_id, trial.cell.label, training, evaluation)
        self.run.display.cell_finished(row)
