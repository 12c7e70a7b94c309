"""The worker: it trains and evaluates cells, and computes references, audits and checks.

Each job is a method that yields items (:mod:`fedsim.runs.items`). With every engine, the worker
computes in the process that made it: a Ray actor, or the driver itself.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.evaluation.scores import ceiling, local_only
from fedsim.evaluation.tuning import run_tuned
from fedsim.grid.models import Cell, Device
from fedsim.methods.messages import Tensors
from fedsim.partition import Partition, PartitionSpec
from fedsim.plugins.code_hash import is_shipped, source_hash
from fedsim.plugins.registry import lookup
from fedsim.results.records import TrainingPair
from fedsim.runs.items import Evaluated, Failure, Item, Progress, in_groups
from fedsim.runs.prepare import Need
from fedsim.runs.process import Process, give_back_freed_memory
from fedsim.seeds import Seeds
from fedsim.training.cohort import LocalPool
from fedsim.training.rehearsal import rehearse
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import AuditRun


def check_source(cell: Cell) -> None:
    """Check that this process imported the code that the cell's id stands for.

    Raises:
        RuntimeError: the code was edited after the grid was read.
    """
    if source_hash(lookup(cell.algorithm)) != cell.source:
        raise RuntimeError(
            f"the source of {cell.algorithm} is not what it was when the grid was read; run "
            "the same command again"
        )


def _job(steps: Callable[..., Iterator[Item]]) -> Callable[..., Iterator[Item]]:
    """Decorate a generator method of the worker, so that calling it runs a job.

    The job makes the process ready and yields an empty :class:`Progress` as a sign that it has
    begun. Then it yields the items of the method. An exception becomes a :class:`Failure`, unless
    it means that the worker cannot be used any more. At last, the memory that the job has freed
    goes back to the system.
    """

    @functools.wraps(steps)
    def job(worker: Worker, *arguments: Any) -> Iterator[Item]:
        worker.make_ready()
        # References, audits and checks have no log, so what they printed is forgotten.
        worker.printed()
        yield Progress()
        try:
            yield from worker.captured_items(steps(worker, *arguments))
        except (Exception, SystemExit) as error:
            yield Progress(output=worker.printed())
            failure = worker.failure(error)
            if failure is None:
                raise
            yield failure
        give_back_freed_memory()

    return job


class Worker(Process):
    """Runs jobs, with all clients of a cell in its own process.

    Args:
        need: the CPUs and GPUs of the worker.
        device: the device that the grid asks for.
        capture: whether what a job prints is collected for the log of its cell. If not, it goes to
            the terminal.
    """

    def __init__(self, need: Need, device: Device = "auto", *, capture: bool = True) -> None:
        super().__init__(need, device)
        self.capture = capture
        self.output = io.StringIO()

    def pool(
        self, engine_data: Sequence[Any], trial: Trial, data: Embeddings, seeds: Seeds
    ) -> LocalPool:
        """Return the clients of a cell.

        Args:
            engine_data: a list whose only item is the data set as the engine's ``put`` returned it.
                Ray does not look into a list, so a reference stays one, for other actors.
            trial: the cell.
            data: its data set.
            seeds: the seed tree of the training.
        """
        return local_pool(trial, data, seeds, self.device)

    def failure(self, error: Exception | SystemExit) -> Failure | None:
        """Return why a job failed.

        A subclass may return None, which means that the worker cannot be used any more.
        """
        trace = "".join(traceback.format_exception(error))
        return Failure(type(error).__name__, str(error), trace)

    @_job
    def train(
        self,
        trial: Trial,
        data: Embeddings,
        engine_data: Sequence[Any],
        checkpoint: bytes | None,
    ) -> Iterator[Item]:
        """Train a cell, then evaluate it.

        Args:
            trial: the cell.
            data: its data set.
            engine_data: the data set once more, in a list; see :meth:`pool`.
            checkpoint: the packed checkpoint from which the training continues, if there is one.

        Yields:
            The progress of the training and its outcome, then the progress of the evaluation and
                its result.
        """
        same_data = self.reuse(trial.data_key, data)
        checkpoints = Checkpoints(checkpoint, trial.cell.training_id)
        check_source(trial.cell)
        if not is_shipped(lookup(trial.cell.algorithm)):
            rehearse(trial)
        run = run_tuned if trial.candidates else run_trial
        steps = run(
            trial,
            same_data,
            functools.partial(self.pool, engine_data),
            checkpoints,
            self.device,
        )
        for group in in_groups(steps):
            records = tuple(step for step in group if isinstance(step, RoundRecord))
            yield Progress(records, self.printed(), checkpoints.unsent())
            # Ray keeps an item until the next one. This one frees a checkpoint that was sent.
            yield Progress()
            last_step = group[-1]
            if isinstance(last_step, Outcome):
                yield last_step
                yield from self._evaluate(trial.ended(last_step), last_step.state, same_data)

    @_job
    def evaluate(self, trial: Trial, state: Tensors, data: Embeddings) -> Iterator[Item]:
        """Evaluate a trained cell, from the ``state`` that its training left."""
        check_source(trial.cell)
        yield from self._evaluate(trial, state, self.reuse(trial.data_key, data))

    def _evaluate(self, trial: Trial, state: Tensors, data: Embeddings) -> Iterator[Item]:
        started = time.perf_counter()
        give_back_freed_memory()
        evaluation = evaluate_cell(trial, state, data, self.device)
        yield Progress(output=self.printed())
        yield Evaluated(evaluation, time.perf_counter() - started)

    @_job
    def audit(self, cell: Cell, run: AuditRun, known: Sequence[TrainingPair]) -> Iterator[Item]:
        """Run the missing pairs of trainings of an audit.

        Args:
            cell: a cell whose claim is audited.
            run: the audit.
            known: the lines of the pairs that are recorded already.

        Yields:
            Progress with some pairs each, then the outcome of the audit.
        """
        check_source(cell)
        lines = list(known)
        for pairs in in_groups(run.missing(known)):
            lines += pairs
            yield Progress(pairs=pairs)
        yield run.outcome(lines)

    @_job
    def check(self, cell: Cell, params: Sequence[str], quick: bool) -> Iterator[Item]:
        """Check a cell's algorithm, in the unit and trust of the cell.

        Args:
            cell: the cell.
            params: the parameters that differ from the defaults, as ``key=YAML`` texts. The check
                gives small values to those of the others that make a training long.
            quick: whether a quick check is enough.

        Yields:
            One item, the list of the check's result lines.

        Raises:
            RuntimeError: a check failed, but none that would refute the privacy claim, so that
                there are no result lines.
        """
        # Few grids have checks, so their code is imported only here.
        from fedsim.evidence.check.check import check_algorithm, check_lines

        check_source(cell)
        findings = list(check_algorithm(cell.algorithm, params, cell.unit, cell.trust, quick=quick))
        lines = check_lines(cell.algorithm, cell.params, params, findings, quick=quick)
        if not lines:
            raise RuntimeError(
                "it failed in a way that says nothing about privacy; "
                f"`fedsim check {cell.algorithm}` shows where"
            )
        yield lines

    @_job
    def reference(
        self,
        data: Embeddings,
        partition: Partition | None,
        spec: PartitionSpec,
        probe_c: float | None,
    ) -> Iterator[Item]:
        """Compute a reference: the ceiling if ``partition`` is None, else local-only.

        Args:
            data: the data set.
            partition: the training examples of each client; None for the ceiling.
            spec: the scheme of the partition.
            probe_c: the inverse penalty of the grid's probe; None if the grid gives none.
        """
        if partition is None:
            yield ceiling(data, probe_c)
        else:
            yield local_only(data, partition, spec, probe_c)

    def captured_items(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items of a job, whose output is captured.

        Between two items other code may run in this process, whose output is not captured.
        """
        while True:
            with self.captured():
                item = next(items, None)
            if item is None:
                return
            yield item
            del item  # frees a checkpoint that was sent before the next item is made

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Collect what Python code prints, warns of or logs in the block, for the cell's log.

        Log records below the level of warnings are left out.
        """
        if not self.capture:
            yield
            return
        root = logging.getLogger()
        # The usual handlers, which for example opacus adds, would write to the terminal.
        usual_handlers = root.handlers
        root.handlers = [logging.StreamHandler(self.output)]
        try:
            with contextlib.redirect_stdout(self.output), contextlib.redirect_stderr(self.output):
                yield
        finally:
            root.handlers = usual_handlers

    def printed(self) -> str:
        """Return the text that was collected since the last call, and forget it."""
        text = self.output.getvalue()
        self.output.seek(0)
        self.output.truncate()
        return text
