"""Judging a finished run anew: its saved generators by the readouts and references of today, on Ray, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsim.errors import UserError
from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import LocalOnly
from fedsim.interrupts import INTERRUPTED
from fedsim.planning.node import Node
from fedsim.planning.prepare import Prepared
from fedsim.plugins.registry import check_installed
from fedsim.report.report import write_report
from fedsim.results.grid_rows import read_manifest
from fedsim.results.rejudging import Finished, generators_missing, prepare_judging, saved_generators
from fedsim.results.row import client_lines, judged_fields, judging_code, reference_fields
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.runs.display import Display, make_display
from fedsim.runs.jobs import Reference
from fedsim.runs.manifest import grid_of, note_judging, now
from fedsim.runs.scheduler import Scheduler, log_lines
from fedsim.runs.slots import Slot
from fedsim.runs.worker import Failure, Report, send_tensors_as_bytes
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line


def run_judging(
    folder: Path,
    nodes: Sequence[Node],
    console: Console,
    engine: AbstractContextManager[Any],
    max_parallel: int | None = None,
    *,
    trust_plugin: bool = False,
) -> int:
    """Judge the finished cells of a run's grid whose rows are of other judging code, then draw the report.

    A row is written again as the last word on its cell: training, budget and ledger as they were, scores and references anew. A cell
    without a saved generator keeps its scores, and the hash of the code that judged them, and gets its references anew, so that all rows
    of a table stand beside the same ones.

    Args:
        folder: the run folder.
        nodes: what the cluster has.
        console: where progress and the table of results go.
        engine: entered if there is anything to judge; Ray is connected inside.
        max_parallel: at most so many cells at a time.
        trust_plugin: also run the code of algorithms that rows name as a file or a module that is not installed.

    Returns:
        The exit code: 0 if every row that can be is judged by today's code and stands beside today's references, 1 if not, 130 after an
        interruption.

    Raises:
        UserError: there is nothing to judge by, a row names a plug-in, data or partitions changed, or another fedsim runs in the folder.
    """
    store = ResultStore(folder)
    store.folder.check()
    with store.lock():
        grid, rows = grid_of(read_manifest(folder), store.folder), finished_rows(store)
        if not rows:
            raise UserError(str(folder), "there is no finished cell here", "run the grid first")
        saved = saved_generators(grid, rows, store.folder)
        todo = outdated(rows, saved)
        if not todo:
            print_line(console, _up_to_date(rows))
            return 0
        for row in () if trust_plugin else todo:
            check_installed(row.algorithm, str(store.folder.results))
        prepared, finished = prepare_judging(grid, todo, saved, store.folder, nodes, max_parallel)
        if missing := generators_missing(finished):
            of = counted(len(todo), "cell")
            what = f"{missing} of {of} without a saved generator: scores stay as they are, references are told anew"
            print_line(console, what, "yellow")
        try:
            with engine, make_display(console, len(rows), len(rows) - len(todo)) as display:
                send_tensors_as_bytes()
                judging = Judging(prepared, finished, store, display)
                try:
                    judging.run(prepared.trials)
                except KeyboardInterrupt:
                    judging.note()
                    raise
        except KeyboardInterrupt:
            done = len(rows) - len(outdated(finished_rows(store), saved))
            print_line(console, f"interrupted: {done} of {len(rows)} cells are judged; the same command goes on")
            return INTERRUPTED
        judging.note()
        report = write_report(folder)
    report.show(console)
    print_line(console, judging.changes())
    print_line(console, f"report: {report.page}")
    return 1 if judging.failures else 0


def algorithms_of(folder: Path) -> list[str]:
    """The algorithms that a run's finished rows name.

    Raises:
        UserError: it is no run folder.
    """
    store = ResultStore(folder)
    store.folder.check()
    return [row.algorithm for row in finished_rows(store)]


def finished_rows(store: ResultStore) -> list[Row]:
    """The rows, as they were written, of the finished cells that the manifest lists."""
    listed = {cell["cell_id"] for cell in read_manifest(store.folder.path).get("cells") or []}
    return [row for row in store.rows() if row.cell_id in listed and row.status != "failed"]


def outdated(rows: Sequence[Row], saved: Mapping[str, Path]) -> list[Row]:
    """The rows whose references, or whose scores and there is a generator to tell them anew, are of other code than today's."""
    today = judging_code()
    return [row for row in rows if row.referenced != today or (row.judged != today and row.cell_id in saved)]


def _up_to_date(rows: Sequence[Row]) -> str:
    left = sum(row.judged != judging_code() for row in rows)
    but = f", but for the scores of {left} without a saved generator" if left else ""
    return f"{counted(len(rows), 'finished cell')} judged by today's code already{but}"


class Judging(Scheduler):
    """Places finished cells and their references on slots, and writes their rows anew.

    Attributes:
        finished: the cells by id.
        failures: how many cells and references could not be computed; rows keep what they had of them.
        written: how many rows say something new.
        moved: by how much each balanced accuracy changed.
    """

    def __init__(self, prepared: Prepared, finished: Mapping[str, Finished], store: ResultStore, display: Display) -> None:
        super().__init__(prepared, store, display)
        self.finished, self.failures, self.written = finished, 0, 0
        self.moved: list[float] = []

    def note(self) -> None:
        """Say in the manifest by what rows were judged, if any was."""
        if self.written:
            note_judging(self.store.folder)

    def changes(self) -> str:
        """What became of the balanced accuracies, in words."""
        changed = [value for value in self.moved if value]
        largest = f", by at most {max(changed):.3g}" if changed else ""
        return f"{counted(len(self.moved), 'cell')} judged anew; balanced accuracy changed in {len(changed)}{largest}"

    def _begin(self, trial: Trial, slot: Slot) -> Any:
        self._log(trial, [f"judged anew {now()}"])
        try:
            asked, state = self.finished[trial.cell.cell_id].state()
        except UserError as error:
            self._failed(trial, str(error))
            asked, state = trial, None
        return slot.worker.judge.options(num_returns="streaming").remote(asked, state, self.data[trial.data_key])

    def _take_report(self, trial: Trial, report: Report) -> None:
        self._log(trial, log_lines(report))
        if isinstance(report.end, Failure):
            self._failed(trial, report.end.summary())
        elif isinstance(report.end, Judgement) or self.finished[trial.cell.cell_id].saved is None:
            self._judged(trial, report.end if isinstance(report.end, Judgement) else None)

    def _reference_failed(self, job: Reference, failure: Failure, meanwhile: str = "rows keep the one that they had") -> None:
        self.failures += 1
        super()._reference_failed(job, failure, meanwhile)

    def _judged(self, trial: Trial, judgement: Judgement | None) -> None:
        """Write the row of a judged cell, once its references are there."""
        if (references := self._references(trial)) is None:
            self.waiting.append(partial(self._judged, trial, judgement))
            self.display.cell_waiting(trial.cell.cell_id)
            return
        before = self.finished[trial.cell.cell_id].row
        if judgement is None:
            row = self._with_references(before, *references)
        else:
            # a reference that failed is no reason to lose the one that was there
            local_only = references[1] or self._local_only_before(before)
            row = before.model_copy(update={**judged_fields(judgement, local_only), **reference_fields(*references)})
            self.moved.append(abs((row.balanced_accuracy or 0.0) - (before.balanced_accuracy or 0.0)))
            self.store.append_clients(client_lines(trial.cell, judgement, local_only))
        self.written += row != before
        self._write(row)

    def _local_only_before(self, row: Row) -> LocalOnly | None:
        """What a row and its clients' lines have of local-only; None where one of them has nothing."""
        clients = tuple(line.get("local_only_balanced_accuracy") for line in self._told.get(row.cell_id, []))
        mean = row.local_only_balanced_accuracy
        return LocalOnly(mean, clients) if mean is not None and len(clients) == row.clients else None

    def _failed(self, trial: Trial, what: str) -> None:
        self.failures += 1
        cell_id = trial.cell.cell_id
        self.display.cell_failed(cell_id)
        self.display.note(
            f"{trial.cell.label} (cell {cell_id}) keeps its row, it could not be judged: {what} ({self.store.folder.log(cell_id)})"
        )
