"""Shows what a prepared grid would run: cells, noise, partitions, memory and time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from fedsim.data.embeddings import Embeddings, untested
from fedsim.evaluation.evaluators import left_out
from fedsim.grid.models import shown
from fedsim.privacy.plan import PrivacyPlan, large_delta
from fedsim.privacy.selection import SCORE
from fedsim.report.terminal import frame_table
from fedsim.results.columns import UNVERIFIED
from fedsim.results.join import RunResults, read_results
from fedsim.runs.display import duration
from fedsim.runs.memory import memory_of_grid
from fedsim.runs.missing import kept_training, missing_audits, work_left
from fedsim.runs.noise_view import Parts, parts_of, signals
from fedsim.runs.prepare import Prepared, label_matrices
from fedsim.training.trial import Trial
from fedsim.words import Printed, counted, number, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.evidence.audit.audit import ClaimAudit


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """What a grid would run.

    Attributes:
        prepared: the grid.
        folder: its run folder. The times of the trainings there are the basis of the estimate.
        audits: the audits of the grid's claims.
        retry_failed: whether failed cells would run again.
    """

    prepared: Prepared
    folder: Path
    audits: tuple[ClaimAudit, ...] = ()
    retry_failed: bool = False

    @property
    def code(self) -> int:
        """The exit code: 1 if a plug-in is left out, else 0."""
        if self.prepared.refused:
            return 1
        return 0

    @property
    def cells(self) -> pd.DataFrame:
        """A table with one row per cell: its place in the grid and its privacy plan."""
        import pandas as pd

        return pd.DataFrame([_cell_facts(trial) for trial in self.prepared.trials])

    @property
    def noise(self) -> pd.DataFrame:
        """A table of the noise in units of the signal, with one row per part of each release.

        A part is one statistic of a release, or its whole gradient. The signal is the largest norm
        that a part can have. Cells that only differ in seed or alpha share their rows. The shapes
        of the parts come from rounds that are computed on made-up examples.
        """
        import pandas as pd

        trial_of_setting = {}
        for trial in self.prepared.trials:
            cell = trial.cell
            data = shown(cell.dataset, cell.evaluation.unseen)
            trial_of_setting[cell.label, data, cell.clients, cell.epsilon] = trial
        parts_of_method: dict[Any, Parts] = {}
        records = []
        for (_, data, _, _), trial in trial_of_setting.items():
            cell = trial.cell
            plan = trial.plan
            if plan is None or not plan.adds_noise:
                continue
            method = (cell.algorithm, str(cell.params), trial.task)
            if method not in parts_of_method:
                parts_of_method[method] = parts_of(trial)
            for release in plan.releases:
                if release.name == SCORE:
                    continue  # The score is no message of clients, so it has no parts.
                for signal in signals(trial, parts_of_method[method], release):
                    record = {
                        "algorithm": cell.label,
                        "data": data,
                        "clients": cell.clients,
                        "ε": cell.epsilon,
                        "release": release.name,
                        "noise multiplier": plan.mechanism(release.name).noise_multiplier,
                        "part": signal.name,
                        "noise / signal": signal.ratio,
                        "signal": signal.words,
                    }
                    records.append(record)
        return pd.DataFrame(records)

    @property
    def partitions(self) -> pd.DataFrame:
        """A table with one row per client of every partition: its number of examples per class.

        No privacy protects these numbers: they are exact counts of the data.
        """
        import pandas as pd

        records = []
        for matrix in label_matrices(self.prepared):
            for client, counts in zip(matrix.names, matrix.counts, strict=True):
                record = {
                    "data": matrix.dataset,
                    "α": matrix.alpha,
                    "clients": matrix.clients,
                    "seed": matrix.seed,
                    "client": client,
                    "rows": counts.sum(),
                }
                for name, count in zip(matrix.classes, counts, strict=True):
                    column = name
                    if column in record:
                        column = f"class {name}"
                    record[column] = count
                records.append(record)
        return pd.DataFrame(records)

    def show(self, console: Console) -> None:
        """Print the tables, the warnings, and the memory and time that the grid needs."""
        prepared = self.prepared
        if prepared.short:
            prepared = replace(prepared, parallel=1)  # It runs in one process.
        lines = read_results(self.folder)
        self._show_tables(wide_console(console, 400))
        show_warnings(prepared, console)
        for data in prepared.data.values():
            size = f"{data.x_train.nbytes / 2**20:.1f} MiB of memory on each machine"
            print_line(console, f"data: {data.name}, {len(data.y_train)} × {data.dim}, {size}")
        memory_of_grid(prepared, in_process=prepared.short).show(console)
        parallel = counted(prepared.at_a_time, "cell")
        print_line(console, f"{parallel} at a time, on actors with {prepared.need} each")
        if prepared.repeated:
            print_line(
                console,
                f"{counted(prepared.repeated, 'cell')} without a separate training: another cell "
                "has the same results, because the partition cannot change them",
            )
        audits = missing_audits(self.audits, lines.audits)
        if audits:
            claims = counted(len(audits), "claim")
            pairs = f"{audits[0].run.count} pairs of trainings"
            print_line(console, f"audits: {claims} would be attacked, each with {pairs}")
        show_time_left(prepared, lines, console, retry_failed=self.retry_failed)
        print_line(console, "nothing was run")

    def _show_tables(self, console: Console) -> None:
        """Print the tables of cells, noise and partitions."""
        prepared = self.prepared
        title = f"{prepared.grid.name}: {counted(len(prepared.trials), 'cell')}"
        console.print(frame_table(title, self.cells))
        noise = self.noise
        if len(noise):
            title = "noise in units of the signal (the largest norm that a part can have)"
            console.print(frame_table(title, noise))
        keys = ["data", "α", "clients", "seed"]
        by_partition = self.partitions.groupby(keys, sort=False, dropna=False)
        spread = by_partition["rows"].agg(["min", "median", "max"])
        console.print(frame_table("partitions: rows per client", spread.reset_index()))


def _cell_facts(trial: Trial) -> dict[str, Any]:
    """Return what is known of a cell before it runs, by column."""
    cell = trial.cell
    plan = trial.plan
    facts: dict[str, Any] = {
        "cell": cell.cell_id,
        "algorithm": cell.label,
        "data": shown(cell.dataset, cell.evaluation.unseen),
        "α": cell.alpha,
        "clients": cell.clients,
        "seed": cell.seed,
        "actors": len(trial.sizes),
        "claim": plan.claim if plan else "none",
    }
    if plan is not None:
        return facts | _plan_facts(plan, cell.unit_name)
    if cell.epsilon is not None:
        # Without a plan, only external samples have an ε, which their author states.
        if math.isfinite(cell.epsilon) and cell.params["claim"] != "none":
            facts["claim"] = UNVERIFIED
        facts["ε"] = cell.epsilon
        facts["δ"] = cell.delta
    return facts


def _plan_facts(plan: PrivacyPlan, unit: str) -> dict[str, Any]:
    """Return the columns that a privacy plan fills, such as its ε, noise and steps."""
    return {
        "ε": plan.epsilon_target,
        "ε reached": plan.epsilon_reached,
        "δ": plan.delta,
        "σ": plan.sigma,
        "q": ", ".join(number(release.sample_rate) for release in plan.releases),
        "steps": ", ".join(str(release.steps) for release in plan.releases),
        "unit": unit,
        "trust": plan.trust,
        "scope": plan.scope,
        "accountant": plan.accountant,
    }


def show_warnings(prepared: Prepared, console: Console) -> None:
    """Print why plug-ins are left out, then each warning once."""
    for error in prepared.refused.values():
        print_line(console, f"left out: {error}", "red")
    for warning in dict.fromkeys(_warnings(prepared)):
        if warning:
            print_line(console, f"warning: {warning}", "yellow")


def _warnings(prepared: Prepared) -> Iterator[str | None]:
    """Yield warnings about a large δ, missing test examples and an alpha without effect.

    Some warnings are yielded several times; None stands for no warning.
    """
    site_of_data = {}
    trial_of_partition = {}
    for trial in prepared.trials:
        cell = trial.cell
        data = prepared.data[trial.data_key]
        site_of_data[trial.data_key] = cell.evaluation.unseen
        trial_of_partition[trial.data_key, cell.clients] = trial
        if trial.plan is not None and trial.plan.adds_noise:
            yield large_delta(cell.unit_name, cell.delta, trial.units, data.name)
    for key, site in site_of_data.items():
        data = prepared.data[key]
        yield untested(data, site)
        if "fidelity" in prepared.grid.evaluation.evaluators:
            yield left_out(data, site)
    for trial in trial_of_partition.values():
        yield alpha_without_effect(trial, prepared.data[trial.data_key])


def alpha_without_effect(trial: Trial, data: Embeddings) -> str | None:
    """Return a warning if a cell's alpha has no effect, else None.

    Alpha has no effect if each value of the partition's column belongs to a single client.
    """
    spec = trial.cell.partition
    if spec.scheme != "column-dirichlet" or spec.column is None:
        return None
    value_count = len(np.unique(data.columns[spec.column]))
    if trial.cell.clients != value_count:
        return None
    clients = counted(value_count, "client")
    return (
        f"alpha has no effect on {data.name} with {clients}: column-dirichlet gives each of the "
        f"{value_count} values of '{spec.column}' a single client"
    )


def show_time_left(
    prepared: Prepared,
    lines: RunResults,
    console: Console,
    least: float = 0.0,
    *,
    retry_failed: bool = False,
) -> None:
    """Print how long the trainings that a run folder lacks will take.

    No mistake in this estimate may end a bench, so any exception becomes a warning.

    Args:
        prepared: the grid.
        lines: the lines of its run folder.
        console: where to print.
        least: the fewest seconds that are printed.
        retry_failed: whether failed cells run again.
    """
    try:
        seconds, words = time_left(prepared, lines, retry_failed=retry_failed)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        print_line(console, f"warning: the time cannot be estimated ({reason})", "yellow")
        return
    if seconds >= least:
        print_line(console, f"time: {words}")


def time_left(
    prepared: Prepared, lines: RunResults, *, retry_failed: bool = False
) -> tuple[float, str]:
    """Return the estimated seconds of the trainings that a run folder lacks, and words for them.

    Each training is assumed to take the mean time of the recorded trainings of its algorithm. The
    seconds leave out algorithms without a recorded training, and the words name these algorithms.
    """
    missing_counts = _cells_to_train(prepared, lines, retry_failed=retry_failed)
    recorded_seconds = _recorded_seconds(lines)
    seconds = 0.0
    known_count = 0
    unknown_names = []
    for name, count in sorted(missing_counts.items()):
        if name in recorded_seconds:
            seconds += count * fmean(recorded_seconds[name])
            known_count += count
        else:
            unknown_names.append(name)
    seconds /= max(1, min(prepared.at_a_time, known_count))
    words = []
    if known_count or not unknown_names:
        words.append(f"about {duration(seconds)} of training for {counted(known_count, 'cell')}")
    if unknown_names:
        names = ", ".join(unknown_names)
        words.append(f"unknown for {names} until a first cell has run in {lines.folder.path}")
    return seconds, ", ".join(words)


def _cells_to_train(prepared: Prepared, lines: RunResults, *, retry_failed: bool) -> Counter[str]:
    """Return how many trainings of each algorithm are missing.

    Cells with equal results share a training.
    """
    algorithm_of_training = {}
    for trial in prepared.trials:
        cell = trial.cell
        unfinished = work_left(cell, lines, retry_failed=retry_failed)
        if unfinished and kept_training(cell, lines) is None:
            algorithm_of_training[prepared.equal[cell.training_id]] = cell.algorithm
    return Counter(algorithm_of_training.values())


def _recorded_seconds(lines: RunResults) -> dict[str, list[float]]:
    """Return the seconds of all trainings that ended without an error, by algorithm."""
    seconds: dict[str, list[float]] = {}
    for training in lines.trainings.values():
        # The seconds of a failed training are None.
        if training["seconds"] is not None:
            algorithm = training["cell"]["algorithm"]
            seconds.setdefault(algorithm, []).append(training["seconds"])
    return seconds
