"""The bench: schedules a grid's cells on Ray, writes what they yield, and can be interrupted and resumed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from fedsim.partition import Partition
from fedsim.report import MANIFEST, grid_rows, write_report
from fedsim.report.tables import rich_table
from fedsim.results import ResultStore, Row, RowError, group_seeds
from fedsim.runtime.cluster import Slot
from fedsim.runtime.display import Display, make_display
from fedsim.runtime.preflight import Prepared
from fedsim.runtime.trial import Outcome, Trial, first_row_fields
from fedsim.runtime.worker import Failure, Report

PACKAGES = ("fedsim", "ray", "torch", "opacus", "numpy", "scikit-learn", "scipy")


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def run_bench(prepared: Prepared, folder: Path, console: Console, retry_failed: bool = False) -> int:
    """Run what is not finished yet, then draw the report.

    Args:
        prepared: the grid.
        folder: the run folder.
        console: where progress and the table of results go.
        retry_failed: run cells again that failed before.

    Returns:
        The exit code: 0 if every cell is ok, 1 if one failed or overspent, 130 after an interruption.
    """
    store = ResultStore(folder)
    with store.lock():
        done = store.finished() | (set() if retry_failed else store.failed())
        todo = [trial for trial in prepared.trials if trial.cell.cell_id not in done]
        write_manifest(folder, prepared)
        code = 0
        total = len(prepared.trials)
        try:
            with make_display(console, total, total - len(todo)) as display:
                Scheduler(prepared, store, display).run(todo)
        except KeyboardInterrupt:
            code = 130
        rows = grid_rows(folder)
        if rows:
            page = write_report(folder)
            if code == 0:
                console.print(rich_table(group_seeds(rows)))
            console.print(f"report: {page}", soft_wrap=True, highlight=False)
    bad = [row for row in rows if row.status != "ok"]
    if code == 130:
        console.print(f"interrupted: {len(rows)} of {total} cells are finished; the same command goes on", soft_wrap=True)
        return code
    for row in bad:
        console.print(_bad_line(row, folder), style="red", soft_wrap=True, highlight=False, markup=False)
    if any(row.status == "failed" for row in bad):
        console.print("run failed cells again with --retry-failed", soft_wrap=True)
    return 1 if bad else 0


def _bad_line(row: Row, folder: Path) -> str:
    what = f"{row.error.type}: {row.error.message}" if row.error else f"ε {row.epsilon_spent} of {row.epsilon_target}"
    return f"{row.status} {row.cell_id} {row.label} seed {row.seed}: {what} (see {folder / 'logs' / row.cell_id}.log)"


def write_manifest(folder: Path, prepared: Prepared) -> None:
    """What ran, on what: versions, git revision, hardware, the resolved grid and its cells."""
    manifest = {
        "versions": versions(),
        "revision": revision(),
        "hardware": hardware(),
        "command": shlex.join(["fedsim", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "grid": prepared.grid.model_dump(mode="json"),
        "cells": [{"cell_id": trial.cell.cell_id, "label": trial.cell.label} for trial in prepared.trials],
    }
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / MANIFEST)


def revision() -> str | None:
    """The git revision of fedsim's source tree, with a mark if it was changed since; None outside a checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of the driver's machine; GPUs of the cluster."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@dataclass
class Job:
    """Something that a slot works on: a cell, or a reference that several rows wait for.

    Attributes:
        actors: the shape of the slot that it needs.
        data_key: which data set it reads.
        trial: the cell; None for a reference.
        reference: the key of the reference; None for a cell.
        partition: of a local-only reference; None for a ceiling.
        probe_c: the reference's probe.
    """

    actors: int
    data_key: str
    trial: Trial | None = None
    reference: tuple[str, ...] | None = None
    partition: Partition | None = None
    probe_c: float = 0.0


class Scheduler:
    """Places jobs on slots, first come first served; the driver alone writes files.

    A slot holds all actors of a cell. A cell's failure is its row; a slot whose actors died is replaced.
    """

    def __init__(self, prepared: Prepared, store: ResultStore, display: Display) -> None:
        self.prepared, self.store, self.display = prepared, store, display
        self.data = {key: ray.put(value) for key, value in prepared.data.items()}
        self.slots: list[Slot] = []
        self.busy: dict[Any, tuple[Slot, Job]] = {}
        self.references: dict[tuple[str, ...], float | None] = {}
        self.waiting: list[tuple[Trial, Outcome]] = []
        self.versions = versions()

    def run(self, trials: Iterable[Trial]) -> None:
        """Run all ``trials`` and the references that their rows need."""
        queue = deque(self._jobs(list(trials)))
        try:
            while queue or self.busy:
                while queue and (slot := self._slot(queue[0].actors)) is not None:
                    self._start(queue.popleft(), slot)
                ready, _ = ray.wait(list(self.busy), num_returns=1, timeout=1.0)
                for stream in ready:
                    self._receive(stream)
        finally:
            for slot in self.slots:
                slot.close()

    def _jobs(self, trials: list[Trial]) -> Iterator[Job]:
        """References right before the first cell that needs them."""
        seen: set[tuple[str, ...]] = set()
        for trial in trials:
            partition = self.prepared.partitions[trial.cell.cell_id]
            key, c = trial.cell.dataset.key, trial.cell.evaluation.probe_c
            for reference, part in zip(reference_keys(trial, partition), (None, partition), strict=True):
                if reference not in seen:
                    seen.add(reference)
                    yield Job(1, key, reference=reference, partition=part, probe_c=c)
            yield Job(len(trial.sizes), key, trial=trial)

    def _slot(self, actors: int) -> Slot | None:
        """An idle slot of the right shape: a free one, a new one, or a new one in place of idle ones of other shapes."""
        working = [slot for slot, _ in self.busy.values()]
        idle = [slot for slot in self.slots if slot not in working]
        for slot in idle:
            if slot.actors == actors:
                return slot
        if actors > 1 and working:
            room = self.prepared.slots - sum(slot.actors for slot in working)
            if room < actors:
                return None
        if actors == 1 and sum(slot.actors for slot in working) >= self.prepared.slots:
            return None
        while idle and sum(slot.actors for slot in self.slots) + actors > max(self.prepared.slots, actors):
            slot = idle.pop()
            slot.close()
            self.slots.remove(slot)
        slot = Slot.open(actors, self.prepared.grid.resources)
        self.slots.append(slot)
        return slot

    def _start(self, job: Job, slot: Slot) -> None:
        data = self.data[job.data_key]
        if job.trial is None:
            stream = slot.worker.reference.options(num_returns="streaming").remote(data, job.partition, job.probe_c)
        else:
            cell = job.trial.cell
            self.display.cell_started(cell.cell_id, cell_words(job.trial))
            path = str((self.store.folder / "checkpoints" / f"{cell.cell_id}.safetensors").absolute())
            stream = slot.worker.run.options(num_returns="streaming").remote(job.trial, data, path, [data])
        self.busy[stream] = (slot, job)

    def _receive(self, stream: Any) -> None:
        """Take the next report of a stream, or note its end."""
        slot, job = self.busy[stream]
        try:
            report: Report = ray.get(next(stream))
        except StopIteration:
            del self.busy[stream]
            return
        except ray.exceptions.RayError as error:
            del self.busy[stream]
            self.slots.remove(slot)
            slot.close()
            report = Report((), "", Failure(type(error).__name__, "a worker of the cell died", str(error)))
        if job.trial is None:
            self._take_reference(job, report)
        else:
            self._take_report(job, job.trial, report)

    def _take_reference(self, job: Job, report: Report) -> None:
        assert job.reference is not None
        self.references[job.reference] = report.end if isinstance(report.end, float) else None
        if isinstance(report.end, Failure):
            self.display.note(f"reference {job.reference[0]} failed: {report.end.message}")
        ready, self.waiting = self.waiting, []
        for trial, outcome in ready:
            self._finish(trial, outcome)

    def _take_report(self, job: Job, trial: Trial, report: Report) -> None:
        cell_id = trial.cell.cell_id
        self.store.append_rounds({"cell_id": cell_id, "round": r.round, **r.values} for r in report.rounds)
        self._log(trial, report)
        if report.rounds:
            last = report.rounds[-1]
            self.display.round_done(cell_id, last.round + 1, last.rounds)
        if isinstance(report.end, Outcome):
            self._finish(trial, report.end)
        elif isinstance(report.end, Failure):
            error = RowError(type=report.end.type, message=report.end.message, traceback=report.end.traceback)
            self._write(trial, {"status": "failed", "error": error})

    def _finish(self, trial: Trial, outcome: Outcome) -> None:
        """Write the row of a cell that ran, once its references are there."""
        keys = reference_keys(trial, self.prepared.partitions[trial.cell.cell_id])
        if not all(key in self.references for key in keys):
            self.waiting.append((trial, outcome))
            return
        target = trial.cell.epsilon
        overspent = target is not None and outcome.epsilon_spent is not None and outcome.epsilon_spent > target * (1 + 1e-6)
        self._write(
            trial,
            {
                "status": "overspent" if overspent else "ok",
                "epsilon_spent": outcome.epsilon_spent,
                "accountant": outcome.accountant,
                "accuracy": outcome.scores.accuracy,
                "balanced_accuracy": outcome.scores.balanced_accuracy,
                "macro_f1": outcome.scores.macro_f1,
                "ceiling_balanced_accuracy": self.references[keys[0]],
                "local_only_balanced_accuracy": self.references[keys[1]],
                "uplink_bytes": outcome.uplink_bytes,
                "seconds": outcome.seconds,
            },
        )

    def _write(self, trial: Trial, fields: dict[str, Any]) -> None:
        partition = self.prepared.partitions[trial.cell.cell_id]
        known = first_row_fields(trial, self.prepared.data[trial.cell.dataset.key], partition.fingerprint)
        row = Row(**{**known, **fields, "versions": self.versions})
        self.store.append(row)
        self.display.cell_finished(row)

    def _log(self, trial: Trial, report: Report) -> None:
        """The cell's log: its setting, a line a round, whatever it printed, how it ended."""
        path = self.store.folder / "logs" / f"{trial.cell.cell_id}.log"
        path.parent.mkdir(exist_ok=True)
        lines = []
        if report.rounds and report.rounds[0].round == 0:
            lines += [f"cell {trial.cell.model_dump_json()}", f"plan {trial.plan}", f"clients per actor {trial.sizes}"]
        for record in report.rounds:
            values = " ".join(f"{k}={_short(v)}" for k, v in record.values.items())
            lines.append(f"round {record.round + 1}/{record.rounds} {values}")
        if report.output:
            lines.append(report.output.rstrip("\n"))
        if isinstance(report.end, Failure):
            lines.append(report.end.traceback.rstrip("\n"))
        elif report.end is not None:
            lines.append(f"end {report.end}")
        with path.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)


def reference_keys(trial: Trial, partition: Partition) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of a cell's ceiling and of its local-only reference."""
    c = str(trial.cell.evaluation.probe_c)
    return ("ceiling", trial.cell.dataset_hash, c), ("local-only", trial.cell.dataset_hash, partition.fingerprint, c)


def cell_words(trial: Trial) -> str:
    """A cell's setting in a few words."""
    cell = trial.cell
    budget = "" if cell.epsilon is None else f" ε={cell.epsilon:g}"
    return f"{cell.label} {cell.dataset.display} α={cell.alpha:g} clients={cell.clients}{budget} seed={cell.seed}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ",".join(_short(item) for item in value) + "]"
    return str(value)
