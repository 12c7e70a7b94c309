"""What a prepared grid would run: cells, the noise in units of the signal, partitions, memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim.data.embeddings import untested
from fedsim.evaluation.readouts import left_out
from fedsim.privacy.plan import Release, large_delta
from fedsim.report.terminal import frame_table
from fedsim.runs.prepare import Prepared
from fedsim.training.trial import Trial
from fedsim.words import Printed, counted, number, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd

ROWS_A_CLIENT = 2
"""Rows of every client in the rounds that show the shapes of what is sent."""
STATISTIC_NAMES = {
    "sum": "mean of all rows",
    "count": "number of rows",
    "second": "second moment",
    "bins": "histogram of distances",
    "features": "class mean features",
    "counts": "class counts",
}
"""What parts of a statistic are called whose own names do not say it."""
_UNITS = {"sum": "a row's norm", "bins": "the number of rows", "site_second": "the radius squared"}
"""What the noise of those is measured in that are no means of rows within the radius."""


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """What a grid would run.

    Attributes:
        prepared: the grid.
        folder: where it would run; the time is estimated by what has run there.
    """

    prepared: Prepared
    folder: Path

    @property
    def code(self) -> int:
        """1 where a plug-in is left out, else 0."""
        return 1 if self.prepared.refused else 0

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell: what is known of it before it runs."""
        import pandas as pd

        return pd.DataFrame([_facts(trial) for trial in self.prepared.trials])

    @property
    def noise(self) -> pd.DataFrame:
        """A row for each part of each release: the norm of its noise over the largest norm that the part itself can have.

        Once for cells that differ in seed or alpha alone; shapes are of rounds on made-up rows.
        """
        import pandas as pd

        cells = {(c.label, c.dataset.display, c.clients, c.epsilon, t.train_rows): t for t in self.prepared.trials[::-1] for c in [t.cell]}
        parts: dict[Any, Parts] = {}
        records = []
        for place, trial in reversed(cells.items()):
            if trial.plan is None or math.isinf(trial.plan.epsilon_target):
                continue
            known = (trial.cell.algorithm, str(trial.cell.params), trial.task)
            parts[known] = parts.get(known) or parts_of(trial)
            for release in trial.plan.releases:
                for name, noise, of in signals(trial, parts[known], release):
                    multiplier = trial.plan.mechanism(release.name).noise_multiplier
                    facts = dict(zip(("algorithm", "data", "clients", "ε"), place, strict=False)) | {"release": release.name}
                    records.append(facts | {"noise multiplier": multiplier, "part": name, "noise / signal": noise, "signal": of})
        return pd.DataFrame(records)

    @property
    def partitions(self) -> pd.DataFrame:
        """A row a client of every partition: its rows of each class. Exact counts, not private."""
        import pandas as pd

        records, seen = [], set()
        for trial in self.prepared.trials:
            cell, partition, data = trial.cell, trial.partition, self.prepared.data[trial.data_key]
            if (key := (trial.data_key, partition.fingerprint)) in seen:
                continue
            seen.add(key)
            place: dict[str, Any] = {"data": data.name, "α": cell.concentration, "clients": cell.clients, "seed": cell.seed}
            for client, counts in enumerate(partition.label_counts):
                records.append(
                    {**place, "client": client, "rows": int(counts.sum()), **dict(zip(data.names, map(int, counts), strict=True))}
                )
        return pd.DataFrame(records)

    def show(self, console: Console) -> None:
        """Print it."""
        prepared, wide = self.prepared, wide_console(console, 400)
        wide.print(frame_table(f"{prepared.grid.name}: {counted(len(prepared.trials), 'cell')}", self.cells))
        if len(noise := self.noise):
            wide.print(frame_table("noise in units of the signal, the largest norm that a part can have", noise))
        wide.print(frame_table("partitions: rows a client", _spread(self.partitions)))
        show_refused(prepared, console)
        show_warnings(prepared, console)
        for line in self._lines():
            print_line(console, line)

    def _lines(self) -> Iterator[str]:
        prepared, asked = self.prepared, self.prepared.grid.resources
        for data in prepared.data.values():
            yield f"data: {data.name}, {len(data.y_train)} × {data.dim}, {data.x_train.nbytes / 2**20:.1f} MiB once a machine"
        held = {rows.public.fingerprint: rows.public for rows in prepared.data.values() if rows.public is not None}
        for key, public in held.items():
            users = ", ".join(dict.fromkeys(t.cell.label for t in prepared.trials if t.cell.public_hash == key))
            labels = "no labels" if public.y is None else "labelled"
            licence = public.licence or "not known"
            shape = f"{len(public.x)} × {public.x.shape[1]}"
            yield f"public data: {public.name}, {shape}, {labels}, licence {licence}; used by {users or 'none'}"
        at_most = "" if asked.memory_per_cell is None else f", at most {asked.memory_per_cell / 2**30:.1f} GiB a cell"
        shares = f"{counted(prepared.need.cpus, 'CPU')} and {counted(prepared.need.gpus, 'GPU')} an actor"
        yield f"{counted(prepared.parallel, 'cell')} at a time, {shares}{at_most}"
        if prepared.repeated:
            equal = f"{prepared.repeated} of {counted(len(prepared.trials), 'cell')}"
            yield f"{equal} are equal to another by construction, whatever the partition, and are not trained again"
        yield f"{self._time()}; {counted(len(prepared.trials), 'cell')}; nothing was run"

    def _time(self) -> str:
        """How long the cells take that are not finished, by those of the same method that ran in the folder."""
        from fedsim.results.store import ResultStore

        trainings, took = ResultStore(self.folder).trainings(), dict[str, list[float]]()
        for line in trainings.values():
            if line["error"] is None:
                took.setdefault(line["cell"]["algorithm"], []).append(line["seconds"])
        left = [trial.cell.algorithm for trial in self.prepared.trials if trial.cell.training_id not in trainings]
        if unknown := sorted({name for name in left if name not in took}):
            return f"time: not known before a cell of {', '.join(unknown)} has run in {self.folder}"
        minutes = sum(fmean(took[name]) for name in left) / self.prepared.parallel / 60
        return (
            f"time: about {minutes:.1f} minutes of training for the {counted(len(left), 'cell')} left"
            if left
            else "time: every cell is finished"
        )


def _facts(trial: Trial) -> dict[str, Any]:
    """What is known of a cell."""
    cell, plan = trial.cell, trial.plan
    facts = {
        "cell": cell.cell_id,
        "algorithm": cell.label,
        "data": cell.dataset.display,
        "α": cell.alpha,
        "clients": cell.clients,
        "seed": cell.seed,
        "actors": len(trial.sizes),
    }
    if plan is None:
        return facts | {"claim": "none"}
    return facts | {
        "claim": plan.claim,
        "ε": plan.epsilon_target,
        "ε reached": plan.epsilon_reached,
        "δ": plan.delta,
        "σ": plan.sigma,
        "q": ", ".join(number(release.sample_rate) for release in plan.releases),
        "steps": ", ".join(str(release.steps) for release in plan.releases),
        "unit": cell.unit_name,
        "trust": plan.trust,
        "scope": plan.scope,
        "accountant": plan.accountant,
    }


def _spread(partitions: pd.DataFrame) -> pd.DataFrame:
    """Least, median and most rows of a client, of each partition, and how many labels a client has."""
    place = ["data", "α", "clients", "seed"]
    classes = partitions.columns.difference([*place, "client", "rows"])
    by = partitions.assign(labels=(partitions[classes] > 0).sum(axis=1)).groupby(place, sort=False, dropna=False)
    spread = by["rows"].agg(["min", "median", "max"]).rename(columns={"min": "least", "max": "most"})
    return spread.assign(**{"labels a client": by["labels"].mean()}).reset_index()


def show_refused(prepared: Prepared, console: Console) -> None:
    """Print why plug-ins are left out."""
    for error in prepared.refused.values():
        print_line(console, f"left out: {error}", "red")


def show_warnings(prepared: Prepared, console: Console) -> None:
    """Print what budgets and scores of the grid do not say although they look like it, each warning once."""
    finite = (trial for trial in prepared.trials if trial.plan is not None and math.isfinite(trial.plan.epsilon_target))
    warnings = dict.fromkeys(
        large_delta(trial.cell.unit_name, trial.cell.delta, trial.units, prepared.data[trial.data_key].name) for trial in finite
    )
    views = {trial.data_key: trial.cell.evaluation.unseen for trial in prepared.trials}
    warnings |= dict.fromkeys(untested(prepared.data[key], site) for key, site in views.items())
    if "fidelity" in prepared.grid.evaluation.readouts:
        warnings |= dict.fromkeys(left_out(prepared.data[key], site) for key, site in views.items())
    for line in filter(None, warnings):
        print_line(console, f"warning: {line}", "yellow")


@dataclass(frozen=True)
class Parts:
    """What an algorithm releases, as a first round on made-up rows shows it.

    Attributes:
        shapes: by release, the shape of each tensor of a message.
        weights: by release, each statistic's weight in a unit's joint norm; none for gradients and updates.
        parameters: how many parameters a client trains.
        local: whether the noise is in every client's own steps.
        clients: whether what is clipped is a client's update or all that it sends.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    weights: Mapping[str, Mapping[str, float]]
    parameters: int
    local: bool
    clients: bool


def parts_of(trial: Trial) -> Parts:
    """The parts of a cell's releases: the first round of each, through the code that trains, on a few made-up rows a client."""
    import torch

    from fedsim.methods.local_training import LocalDPSGD, LocalTraining
    from fedsim.methods.messages import Message, Round, Tensors
    from fedsim.seeds import Seeds
    from fedsim.training.cohort import LocalPool
    from fedsim.training.rounds import to_the_end, train
    from fedsim.training.trial import first_rounds, made_up_cohort

    shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    class Noted(LocalPool):
        """Clients that note the shapes of what they send."""

        def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
            messages = super().round(round_, broadcast)
            shapes[round_.release.name] = {name: tuple(value.shape) for name, value in messages[0].sums.items()}
            return messages

    with torch.random.fork_rng(devices=[]):
        cohort = made_up_cohort(trial.cell.algorithm, trial.cell.params, trial.task, trial.plan, ROWS_A_CLIENT)
        algorithm = cohort.algorithm
        to_the_end(train(algorithm, Noted([cohort]), trial.plan, Seeds(0), schedule=first_rounds(algorithm)))
    return Parts(
        shapes,
        {phase.release.name: dict(phase.weights) for phase in cohort.phases},
        sum(p.numel() for p in cohort.clients.model.parameters()),
        local := isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps,
        algorithm.clips_clients() or (isinstance(algorithm, LocalTraining) and not local),
    )


def signals(trial: Trial, parts: Parts, release: Release) -> Iterator[tuple[str, float, str]]:
    """Every part of a release: its name, the expected norm of its noise over the largest norm that it can have, and what that is."""
    weights = parts.weights.get(release.name, {})
    if not weights:
        yield _gradient(trial, parts, release)
        return
    for name, shape in parts.shapes[release.name].items():
        yield _statistic(trial, release, name, shape, weights.get(name, 1.0))


def _statistic(trial: Trial, release: Release, name: str, shape: tuple[int, ...], weight: float) -> tuple[str, float, str]:
    assert trial.plan is not None
    size = math.prod(shape[1:])
    dim = trial.cell.params.get("project") or trial.task.dim
    matrices = shape == (dim, dim) or (name == "class_second" and shape[0] % size == 0)
    groups = shape[0] // size if matrices else shape[0]
    held = trial.units / groups
    std = trial.plan.noise_std_of_sum(release.name, trial.task.clients) / (trial.plan.clip * weight)
    # a sum is released to be divided, so its noise is that of a mean
    title = STATISTIC_NAMES.get(name) or name.replace("_sums", " means").replace("_second", " second moments").replace("_", " ")
    of = f"of n = {trial.units:,}" + (f" in {groups} groups" if groups > 1 else "")
    if matrices:
        # the spectral norm of a matrix of independent noise is about twice the root of its size
        return title, 2 * math.sqrt(size) * std / held, f"largest trace {of}, spectral norm, {size} dimensions"
    if size == 1:
        return title, std / held, f"count {of}"
    return title, math.sqrt(size) * std / held, f"{_UNITS.get(name, 'radius')} {of}, {size} dimensions"


def _gradient(trial: Trial, parts: Parts, release: Release) -> tuple[str, float, str]:
    assert trial.plan is not None
    held, called = (trial.train_rows, "examples") if trial.train_groups is None else (trial.train_groups, "groups")
    task, clip = trial.task, trial.plan.clip
    size = sum(math.prod(shape) for shape in parts.shapes[release.name].values())
    if parts.local:
        own = held / task.clients
        size, units, of = parts.parameters, own * release.sample_rate, f"{called} of a client's {own:,.0f}"
    elif parts.clients:
        units, of = task.clients * release.sample_rate, f"of {task.clients:,} clients"
    else:
        units, of = held * release.sample_rate, f"{called} of n = {held:,}"
    noise = trial.plan.noise_std_of_sum(release.name, 1 if parts.local else task.clients) * math.sqrt(size) / (clip * units)
    name = "sum of updates" if parts.clients and not parts.weights.get(release.name) else "sum of gradients"
    return name, noise, f"clip {number(clip)} × {units:,.0f} expected {of}, {size:,} parameters, in each of {release.steps} steps"
