"""Shows what a prepared grid would run: cells, noise, partitions, memory and time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from fedsim.data.embeddings import Embeddings, untested
from fedsim.evaluation.evaluators import left_out
from fedsim.grid.models import shown
from fedsim.privacy.plan import PrivacyPlan, large_delta
from fedsim.report.terminal import frame_table
from fedsim.results.columns import UNVERIFIED
from fedsim.results.join import RunResults, read_results
from fedsim.runs.display import duration
from fedsim.runs.memory import memory_of_grid
from fedsim.runs.missing import Missing, is_trained, state_of, work_left
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
        folder: its run folder; what has run there tells how long the rest will take.
        audits: the audits of the grid's claims.
    """

    prepared: Prepared
    folder: Path
    audits: tuple[ClaimAudit, ...] = ()

    @property
    def code(self) -> int:
        """The exit code: 1 if a plug-in is left out, else 0."""
        if self.prepared.refused:
            return 1
        return 0

    @property
    def cells(self) -> pd.DataFrame:
        """A table with one row per cell: what is known of it before it runs."""
        import pandas as pd

        return pd.DataFrame([_cell_facts(trial) for trial in self.prepared.trials])

    @property
    def noise(self) -> pd.DataFrame:
        """A table of the noise in units of the signal, with one row per part of each release.

        Each row divides the norm of the noise by the largest norm that the part can have. Cells
        that only differ in seed or alpha share their rows. The shapes of the parts come from rounds
        that are computed on made-up examples.
        """
        import pandas as pd

        distinct = {}
        for trial in self.prepared.trials:
            cell = trial.cell
            data = shown(cell.dataset, cell.evaluation.unseen)
            distinct[cell.label, data, cell.clients, cell.epsilon] = trial
        parts: dict[Any, Parts] = {}
        records = []
        for (_, data, _, _), trial in distinct.items():
            cell = trial.cell
            plan = trial.plan
            if plan is None or math.isinf(plan.epsilon_target):
                continue
            method = (cell.algorithm, str(cell.params), trial.task)
            if method not in parts:
                parts[method] = parts_of(trial)
            for release in plan.releases:
                for signal in signals(trial, parts[method], release):
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
        """A table with one row per client of every partition: its examples of each class.

        The counts are exact, not private.
        """
        import pandas as pd

        records = []
        for matrix in label_matrices(self.prepared):
            for client, counts in zip(matrix.names, matrix.counts, strict=True):
                classes = dict(zip(matrix.classes, map(int, counts), strict=True))
                records.append(
                    {
                        "data": matrix.dataset,
                        "α": matrix.alpha,
                        "clients": matrix.clients,
                        "seed": matrix.seed,
                        "client": client,
                        "rows": int(counts.sum()),
                        **classes,
                    }
                )
        return pd.DataFrame(records)

    def show(self, console: Console) -> None:
        """Print the tables, the warnings, and the memory and time that the grid needs."""
        prepared = self.prepared
        self._show_tables(wide_console(console, 400))
        show_warnings(prepared, console)
        for data in prepared.data.values():
            size = f"{data.x_train.nbytes / 2**20:.1f} MiB once a machine"
            print_line(console, f"data: {data.name}, {len(data.y_train)} × {data.dim}, {size}")
        memory_of_grid(prepared, in_process=prepared.short).show(console)
        parallel = counted(prepared.parallel, "cell")
        print_line(console, f"{parallel} at a time, actors with {prepared.need} each")
        if prepared.repeated:
            print_line(
                console,
                f"{counted(prepared.repeated, 'cell')} without separate training: the results are "
                "those of another cell, because the partition cannot change them",
            )
        if self.audits:
            claims = counted(len(self.audits), "claim")
            pairs = f"{self.audits[0].run.count} pairs of trainings"
            print_line(console, f"audits: {claims} would be attacked, each with {pairs}")
        show_time_left(prepared, read_results(self.folder), console)
        print_line(console, "nothing was run")

    def _show_tables(self, console: Console) -> None:
        """Print the tables of cells, noise and partitions."""
        prepared = self.prepared
        title = f"{prepared.grid.name}: {counted(len(prepared.trials), 'cell')}"
        console.print(frame_table(title, self.cells))
        noise = self.noise
        if len(noise):
            title = "noise in units of the signal, the largest norm that a part can have"
            console.print(frame_table(title, noise))
        keys = ["data", "α", "clients", "seed"]
        by_partition = self.partitions.groupby(keys, sort=False, dropna=False)
        spread = by_partition["rows"].agg(["min", "median", "max"])
        console.print(frame_table("partitions: rows a client", spread.reset_index()))


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
        # The author of external samples states their ε.
        if math.isfinite(cell.epsilon) and cell.params["claim"] != "none":
            facts["claim"] = UNVERIFIED
        facts["ε"] = cell.epsilon
        facts["δ"] = cell.delta
    return facts


def _plan_facts(plan: PrivacyPlan, unit: str) -> dict[str, Any]:
    """Return what a privacy plan promises, by column."""
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
    """Yield warnings of budgets and scores that promise less than they seem to promise.

    Some warnings are yielded several times; None stands for no warning.
    """
    sites = {}
    partitions = {}
    for trial in prepared.trials:
        cell = trial.cell
        data = prepared.data[trial.data_key]
        sites[trial.data_key] = cell.evaluation.unseen
        partitions[trial.data_key, cell.clients] = trial
        if trial.plan is not None and math.isfinite(trial.plan.epsilon_target):
            yield large_delta(
                cell.unit_name,
                cell.delta,
                trial.units,
                data.name,
            )
    for key, site in sites.items():
        data = prepared.data[key]
        yield untested(data, site)
        if "fidelity" in prepared.grid.evaluation.evaluators:
            yield left_out(data, site)
    for trial in partitions.values():
        yield alpha_without_effect(trial, prepared.data[trial.data_key])


def alpha_without_effect(trial: Trial, data: Embeddings) -> str | None:
    """Return a warning if a cell's alpha has no effect, else None.

    Alpha has no effect if each value of the partition's column belongs to a single client.
    """
    spec = trial.cell.partition
    if spec.scheme != "column-dirichlet" or spec.column is None:
        return None
    values = len(np.unique(data.columns[spec.column]))
    if trial.cell.clients != values:
        return None
    return (
        f"alpha has no effect on {data.name} with {counted(values, 'client')}: column-dirichlet "
        f"gives each of the {values} values of '{spec.column}' a single client"
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
        least: a time of fewer seconds is not printed.
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

    Each training is assumed to take the mean time of the recorded ones of its algorithm. The words
    name the algorithms that have not run yet; the seconds do not count them.
    """
    cells = _cells_to_train(prepared, lines, retry_failed=retry_failed)
    recorded = _recorded_seconds(lines)
    seconds = 0.0
    known = 0
    unknown = []
    for name, count in sorted(cells.items()):
        if name in recorded:
            seconds += count * fmean(recorded[name]) / prepared.parallel
            known += count
        else:
            unknown.append(name)
    words = []
    if known or not unknown:
        words.append(f"about {duration(seconds)} of training for {counted(known, 'cell')}")
    if unknown:
        folder = lines.folder.path
        words.append(f"not known before a cell of {', '.join(unknown)} has run in {folder}")
    return seconds, ", ".join(words)


def _cells_to_train(prepared: Prepared, lines: RunResults, *, retry_failed: bool) -> Counter[str]:
    """Return the number of trainings that are missing, by algorithm; equal cells share one."""
    algorithms = {}
    for trial in prepared.trials:
        cell = trial.cell
        if isinstance(work_left(state_of(cell, lines), retry_failed=retry_failed), Missing):
            algorithms[prepared.equal[cell.training_id]] = cell.algorithm
    return Counter(algorithms.values())


def _recorded_seconds(lines: RunResults) -> dict[str, list[float]]:
    """Return the seconds of all trainings that ended without an error, by algorithm."""
    seconds: dict[str, list[float]] = {}
    for training_id, line in lines.trainings.items():
        if is_trained(training_id, lines):
            algorithm = line["cell"]["algorithm"]
            seconds.setdefault(algorithm, []).append(line["seconds"])
    return seconds
