"""What a prepared grid would run: cells, the noise in units of the signal, partitions, memory and
time.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from fedsim.data.embeddings import Embeddings, untested
from fedsim.evaluation.readouts import left_out
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Release, large_delta
from fedsim.report.terminal import frame_table
from fedsim.results.columns import UNVERIFIED, Line
from fedsim.results.store import ResultStore
from fedsim.runs.jobs import missing_audits
from fedsim.runs.prepare import Prepared, label_matrices
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool, build_algorithm
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial, first_rounds, local_pool, made_up_cohort
from fedsim.words import Printed, counted, number, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.evidence.audit.audit import AuditRun, ClaimAudit

Parts = tuple[Cohort, Mapping[str, Mapping[str, tuple[int, ...]]]]
"""Clients on made-up rows, and the shapes of the tensors that they send, by release."""
RoundKind = tuple[str, str, tuple[tuple[str, float, int], ...]]
"""An algorithm, a data set, and the name, sampling rate and steps a round of each release."""
ROWS_A_CLIENT = 2
"""Rows of every client in the rounds that show the shapes of what is sent."""


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """What a grid would run.

    Attributes:
        prepared: the grid.
        folder: where it would run; the time is estimated by what has run there.
        audits: the audits of its claims.
    """

    prepared: Prepared
    folder: Path
    audits: tuple[ClaimAudit, ...] = ()

    @property
    def code(self) -> int:
        """1 where a plug-in is left out, else 0."""
        if self.prepared.refused:
            return 1
        return 0

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell: what is known of it before it runs."""
        import pandas as pd

        records = []
        for trial in self.prepared.trials:
            cell = trial.cell
            plan = trial.plan
            facts: dict[str, Any] = {
                "cell": cell.cell_id,
                "algorithm": cell.label,
                "data": cell.dataset.display,
                "α": cell.alpha,
            }
            facts |= {
                "clients": cell.clients,
                "seed": cell.seed,
                "actors": len(trial.sizes),
                "claim": plan.claim if plan else "none",
            }
            if plan is None and cell.epsilon is not None:  # what the author of the rows states
                if math.isfinite(cell.epsilon) and cell.params["claim"] != "none":
                    facts["claim"] = UNVERIFIED
                facts |= {"ε": cell.epsilon, "δ": cell.delta}
            if plan is not None:
                facts |= {
                    "ε": plan.epsilon_target,
                    "ε reached": plan.epsilon_reached,
                    "δ": plan.delta,
                    "σ": plan.sigma,
                }
                facts["q"] = ", ".join(number(release.sample_rate) for release in plan.releases)
                facts["steps"] = ", ".join(str(release.steps) for release in plan.releases)
                facts |= {
                    "unit": cell.unit_name,
                    "trust": plan.trust,
                    "scope": plan.scope,
                    "accountant": plan.accountant,
                }
            records.append(facts)
        return pd.DataFrame(records)

    @property
    def noise(self) -> pd.DataFrame:
        """A row for each part of each release: the norm of its noise over the largest norm that the
        part itself can have.

        Once for cells that differ in seed or alpha alone; shapes are of rounds on made-up rows.
        """
        import pandas as pd

        cells = {
            (t.cell.label, t.cell.dataset.display, t.cell.clients, t.cell.epsilon): t
            for t in self.prepared.trials
        }
        parts: dict[Any, Parts] = {}
        records = []
        for place, trial in cells.items():
            if trial.plan is None or math.isinf(trial.plan.epsilon_target):
                continue
            known = (trial.cell.algorithm, str(trial.cell.params), trial.task)
            parts[known] = parts.get(known) or parts_of(trial)
            for release in trial.plan.releases:
                facts = dict(zip(("algorithm", "data", "clients", "ε"), place, strict=True)) | {
                    "release": release.name
                }
                facts["noise multiplier"] = trial.plan.mechanism(release.name).noise_multiplier
                for name, noise, of in signals(trial, parts[known], release):
                    records.append(facts | {"part": name, "noise / signal": noise, "signal": of})
        return pd.DataFrame(records)

    @property
    def partitions(self) -> pd.DataFrame:
        """A row a client of every partition: its rows of each class. Exact counts, not private."""
        import pandas as pd

        records = []
        for one in label_matrices(self.prepared):
            place = {"data": one.dataset, "α": one.alpha, "clients": one.clients, "seed": one.seed}
            for client, counts in zip(one.names, one.counts, strict=True):
                classes = dict(zip(one.classes, map(int, counts), strict=True))
                records.append(place | {"client": client, "rows": int(counts.sum()), **classes})
        return pd.DataFrame(records)

    def show(self, console: Console) -> None:
        """Print it."""
        prepared = self.prepared
        wide = wide_console(console, 400)
        wide.print(
            frame_table(
                f"{prepared.grid.name}: {counted(len(prepared.trials), 'cell')}", self.cells
            )
        )
        if len(noise := self.noise):
            wide.print(
                frame_table(
                    "noise in units of the signal, the largest norm that a part can have", noise
                )
            )
        spread = self.partitions.groupby(
            ["data", "α", "clients", "seed"], sort=False, dropna=False
        )["rows"].agg(["min", "median", "max"])
        wide.print(frame_table("partitions: rows a client", spread.reset_index()))
        show_warnings(prepared, console)
        for data in prepared.data.values():
            size = f"{data.x_train.nbytes / 2**20:.1f} MiB once a machine"
            print_line(console, f"data: {data.name}, {len(data.y_train)} × {data.dim}, {size}")
        print_line(
            console,
            f"{counted(prepared.parallel, 'cell')} at a time, actors with {prepared.need} each",
        )
        if prepared.repeated:
            print_line(
                console,
                f"{counted(prepared.repeated, 'cell')} equal to another by construction: "
                "trained once",
            )
        if self.audits:
            pairs = f"{self.audits[0].run.count} pairs of trainings each"
            print_line(console, f"audits: {counted(len(self.audits), 'claim')}, {pairs}")
        trainings = ResultStore(self.folder).last("trainings")
        time = time_left(prepared, trainings, self.folder, self.audits)[1]
        print_line(console, f"{time}; nothing was run")


def time_left(
    prepared: Prepared,
    trainings: Mapping[str, Line],
    folder: Path,
    audits: Sequence[ClaimAudit] = (),
) -> tuple[float, str]:
    """The minutes that are left in a folder, and these in words: by its ``trainings`` of the same
    method, else by a warm-up; and by one pair of trainings of each audit.

    Plug-ins, whose code is not to run in this process, and cells on GPUs have none.
    """
    took = defaultdict[str, list[float]](list)
    seconds = defaultdict[str, float](float)
    for line in trainings.values():
        if line["error"] is None:
            took[line["cell"]["algorithm"]].append(line["seconds"])
    cells = [
        one
        for one in prepared.trials
        if prepared.equal.get(one.cell.training_id, one.cell.training_id) == one.cell.training_id
    ]
    left = [trial for trial in cells if trial.cell.training_id not in trainings]
    rates: dict[RoundKind, dict[str, float]] = {}
    unknown = sorted(
        {
            one.cell.algorithm
            for one in left
            if prepared.need.gpus or not is_shipped(lookup(one.cell.algorithm))
        }
        - {*took}
    )
    for trial in (trial for trial in left if trial.cell.algorithm not in unknown):
        name = trial.cell.algorithm
        tuning = trial.cell.tuning
        if name not in took:
            algorithm = build_algorithm(name, trial.cell.params, trial.task)
            kind = round_kind(trial, algorithm.releases())
            rates[kind] = rates.get(kind) or seconds_a_round(trial, prepared)
            whole = (tuning.trials if tuning else 1) * sum(
                rates[kind][each.name] * each.rounds for each in algorithm.releases()
            )
        if name in took:
            seconds[name] += fmean(took[name])
        else:
            seconds[name] += whole
    minutes = sum(seconds.values()) / prepared.parallel / 60
    dearest = max(seconds, key=seconds.__getitem__, default="")
    if seconds or not unknown:
        words = [f"about {_long(minutes)} of training for the {counted(len(left), 'cell')} left"]
    else:
        words = []
    if len(seconds) > 1 and minutes > 1:
        words += [f"{seconds[dearest] / sum(seconds.values()):.0%} of it {dearest}"]
    if unknown:
        words += [f"not known before a cell of {', '.join(unknown)} has run in {folder}"]
    audit_minutes, audit_words = audit_time(prepared, audits, ResultStore(folder))
    return minutes + audit_minutes, f"time: {', '.join([*words, *audit_words])}"


def audit_time(
    prepared: Prepared, audits: Sequence[ClaimAudit], store: ResultStore
) -> tuple[float, list[str]]:
    """The minutes of the audits that a folder lacks, by a pair of trainings of each method, and
    these in words; plug-ins, whose code is not to run in this process, have none.
    """
    if audits:
        missing = missing_audits(audits, list(store.lines("audits")))
    else:
        missing = []
    if not missing:
        return 0.0, []
    done = Counter(line["audit"] for line in store.lines("pairs"))
    rates: dict[tuple[str, str], float] = {}
    known: list[float] = []
    unknown: list[str] = []
    for audit in missing:
        setting = audit.run.setting
        if not is_shipped(lookup(setting.algorithm)):
            unknown.append(audit.words)
            continue
        method = (setting.algorithm, str(setting.params))
        if method not in rates:
            rates[method] = seconds_a_pair(audit.run)
        known.append(rates[method] * max(0, audit.run.count - done[audit.run.key]))
    minutes = sum(known) / prepared.parallel / 60
    words = []
    if known:
        words.append(f"about {_long(minutes)} for the {counted(len(known), 'audit')} left")
    if unknown:
        words.append(f"not known for {', '.join(unknown)}")
    return minutes, words


def seconds_a_pair(audit: AuditRun) -> float:
    """The seconds of a pair of trainings of an audit: of its second one, for the first one loads
    what both need. Nothing of it is kept.
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            pairs = audit.missing([])
            next(pairs)
            started = time.perf_counter()
            next(pairs)
            return time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)


def _long(minutes: float) -> str:
    """A time in minutes, or where it is long in hours."""
    if minutes > 90:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.1f} minutes"


def round_kind(trial: Trial, releases: Sequence[Release]) -> RoundKind:
    """What cells have in common whose rounds are taken to last equally long.

    Entries of one method may differ in their releases, so the method's name is not enough.
    """
    of_releases = tuple((each.name, each.sample_rate, each.per_round) for each in releases)
    return trial.cell.algorithm, trial.data_key, of_releases


def seconds_a_round(trial: Trial, prepared: Prepared) -> dict[str, float]:
    """The seconds of a round of each release of a cell, by the second where there are two; nothing
    of it is kept.
    """
    data = prepared.data[trial.data_key]
    seconds = dict[str, float]()
    with torch.random.fork_rng(devices=[]), threadpool_limits(max(1, int(prepared.need.cpus))):
        algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.given(data).task)
        pool = local_pool(trial.given(data), data)
        started = time.perf_counter()
        for record in train(
            algorithm, pool, trial.plan, Seeds(0), schedule=first_rounds(algorithm, 2)
        ):
            seconds[record.values["release"]] = time.perf_counter() - started
            started = time.perf_counter()
    return seconds


def show_warnings(prepared: Prepared, console: Console) -> None:
    """Print why plug-ins are left out, and what budgets and scores do not say although they look
    like it, each warning once.
    """
    for error in prepared.refused.values():
        print_line(console, f"left out: {error}", "red")
    finite = (
        trial
        for trial in prepared.trials
        if trial.plan is not None and math.isfinite(trial.plan.epsilon_target)
    )
    warnings = dict.fromkeys(
        large_delta(
            trial.cell.unit_name, trial.cell.delta, trial.units, prepared.data[trial.data_key].name
        )
        for trial in finite
    )
    views = {trial.data_key: trial.cell.evaluation.unseen for trial in prepared.trials}
    warnings |= dict.fromkeys(untested(prepared.data[key], site) for key, site in views.items())
    if "fidelity" in prepared.grid.evaluation.readouts:
        warnings |= dict.fromkeys(left_out(prepared.data[key], site) for key, site in views.items())
    partitions = {(trial.data_key, trial.cell.clients): trial for trial in prepared.trials}
    warnings |= dict.fromkeys(
        alpha_without_effect(trial, prepared.data[trial.data_key]) for trial in partitions.values()
    )
    for line in filter(None, warnings):
        print_line(console, f"warning: {line}", "yellow")


def alpha_without_effect(trial: Trial, data: Embeddings) -> str | None:
    """That a cell's alpha changes nothing, because no value of its column has two clients; None
    where it may change something.
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


def parts_of(trial: Trial) -> Parts:
    """A cell's clients and the shapes of what they send, from the first round of each release on a
    few made-up rows a client.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    class Noted(LocalPool):
        """Clients that note the shapes of what they send."""

        def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
            messages = super().round(round_, broadcast)
            shapes[round_.release.name] = {
                name: tuple(value.shape) for name, value in messages[0].sums.items()
            }
            return messages

    with torch.random.fork_rng(devices=[]):
        cohort = made_up_cohort(
            trial.cell.algorithm, trial.cell.params, trial.task, trial.plan, ROWS_A_CLIENT
        )
        to_the_end(
            train(
                cohort.algorithm,
                Noted([cohort]),
                trial.plan,
                Seeds(0),
                schedule=first_rounds(cohort.algorithm),
            )
        )
    return cohort, shapes


def signals(trial: Trial, parts: Parts, release: Release) -> Iterator[tuple[str, float, str]]:
    """Every part of a release: its name, the expected norm of its noise over the largest norm that
    it can have, and what that is.
    """
    from fedsim.methods.local_training import LocalDPSGD, LocalTraining

    assert trial.plan is not None
    task, plan, (cohort, sent) = trial.task, trial.plan, parts
    shapes = sent[release.name]
    weights = next(
        (phase.weights for phase in cohort.phases if phase.release.name == release.name), {}
    )
    dim = trial.cell.params.get("project") or task.dim
    for name, shape in shapes.items() if weights else ():
        size = math.prod(shape[1:])
        matrices = shape == (dim, dim) or (name == "class_second" and shape[0] % size == 0)
        if matrices:
            groups = shape[0] // size
        else:
            groups = shape[0]
        # a sum is released to be divided, so its noise is that of a mean
        std = (
            plan.noise_std_of_sum(release.name, task.clients)
            / (plan.clip * weights.get(name, 1.0))
            / (trial.units / groups)
        )
        # the spectral norm of a matrix of independent noise is about twice the root of its size
        if matrices:
            norm = 2.0
            of = "largest trace, spectral norm"
        else:
            norm = 1.0
            if size > 1:
                of = "radius"
            else:
                of = "count"
        title = (
            name.replace("_sums", " means").replace("_second", " second moments").replace("_", " ")
        )
        yield (
            title,
            norm * math.sqrt(size) * std,
            f"{of} of n = {trial.units:,} in {groups} groups, {size} dimensions",
        )
    if weights:
        return
    algorithm = cohort.algorithm
    local = (
        isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps
    )  # the noise is in every client's own steps
    clients = algorithm.clips_clients() or (isinstance(algorithm, LocalTraining) and not local)
    parameters = sum(p.numel() for p in cohort.clients.model.parameters())
    if trial.train_groups is None:
        held = trial.train_rows
        called = "examples"
    else:
        held = trial.train_groups
        called = "groups"
    if local:
        size = parameters
    else:
        size = sum(math.prod(shape) for shape in shapes.values())
    units = (
        held / task.clients if local else task.clients if clients else held
    ) * release.sample_rate
    if clients:
        of = "clients"
    elif local:
        of = f"{called} of a client"
    else:
        of = called
    noise = (
        plan.noise_std_of_sum(release.name, 1 if local else task.clients)
        * math.sqrt(size)
        / (plan.clip * units)
    )
    steps = f"{size:,} parameters, in each of {release.steps} steps"
    yield (
        f"sum of {'updates' if clients else 'gradients'}",
        noise,
        f"clip {number(plan.clip)} × {units:,.0f} expected {of}, {steps}",
    )
