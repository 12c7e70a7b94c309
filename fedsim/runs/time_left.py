"""Estimates how long the trainings and audits that a run folder lacks will take."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

from fedsim.plugins.code_hash import is_shipped
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Release
from fedsim.results.join import RunResults
from fedsim.results.store import ResultStore
from fedsim.runs.missing import Missing, is_trained, missing_audits, state_of
from fedsim.runs.prepare import Prepared
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import train
from fedsim.training.trial import Trial, first_rounds, local_pool
from fedsim.words import counted

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import AuditRun, ClaimAudit

RoundKind = tuple[str, str, tuple[tuple[str, float, int], ...]]
"""An algorithm, a data set, and the name, sampling rate and steps per round of each release."""


def time_left(
    prepared: Prepared, lines: RunResults, audits: Sequence[ClaimAudit] = ()
) -> tuple[float, str]:
    """Estimate the minutes that a grid still needs in its run folder.

    A training is estimated by the recorded trainings of its method, else by a warm-up of two
    rounds of each release. An audit is estimated by one of its pairs of trainings. There is no
    estimate for methods that have not run yet if they are plug-ins, whose code must not run in
    this process, or if they run on GPUs.

    Args:
        prepared: the grid.
        lines: the lines of its run folder.
        audits: the audits of the grid's claims.

    Returns:
        The minutes, and a text for the user.
    """
    left = _untrained(prepared, lines)
    recorded = _recorded_seconds(lines)
    unknown = set()
    seconds = defaultdict[str, float](float)
    warm_up_rates: dict[RoundKind, dict[str, float]] = {}
    for trial in left:
        name = trial.cell.algorithm
        if name in recorded:
            seconds[name] += fmean(recorded[name])
        elif prepared.need.gpus or not is_shipped(lookup(name)):
            unknown.add(name)
        else:
            seconds[name] += _warm_up_seconds(trial, prepared, warm_up_rates)
    total = sum(seconds.values())
    minutes = total / prepared.parallel / 60
    folder = lines.folder.path
    words = []
    if seconds or not unknown:
        duration = _in_words(minutes)
        cells = counted(len(left), "cell")
        words.append(f"about {duration} of training for the {cells} left")
    if len(seconds) > 1 and minutes > 1:
        slowest = max(seconds, key=seconds.__getitem__)
        share = seconds[slowest] / total
        words.append(f"{share:.0%} of it {slowest}")
    if unknown:
        names = ", ".join(sorted(unknown))
        words.append(f"not known before a cell of {names} has run in {folder}")
    audit_minutes, audit_words = audit_time(prepared, audits, ResultStore(folder))
    words += audit_words
    return minutes + audit_minutes, f"time: {', '.join(words)}"


def _untrained(prepared: Prepared, lines: RunResults) -> list[Trial]:
    """Return the cells that lack a training; of cells that share one, only the first."""
    untrained = []
    for trial in prepared.trials:
        training_id = trial.cell.training_id
        shares_training = prepared.equal.get(training_id, training_id) != training_id
        if not shares_training and isinstance(state_of(trial.cell, lines), Missing):
            untrained.append(trial)
    return untrained


def _recorded_seconds(lines: RunResults) -> dict[str, list[float]]:
    """Return the seconds of all trainings that ended without an error, by algorithm."""
    seconds = defaultdict[str, list[float]](list)
    for training_id, line in lines.trainings.items():
        if is_trained(training_id, lines):
            algorithm = line["cell"]["algorithm"]
            seconds[algorithm].append(line["seconds"])
    return dict(seconds)


def _warm_up_seconds(
    trial: Trial, prepared: Prepared, rates: dict[RoundKind, dict[str, float]]
) -> float:
    """Return the seconds of a cell's training, by a warm-up.

    Args:
        trial: the cell.
        prepared: the grid.
        rates: the seconds of a round by release, of the warm-ups so far; a new one is added.
    """
    cell = trial.cell
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    releases = algorithm.releases()
    kind = round_kind(trial, releases)
    if kind not in rates:
        rates[kind] = seconds_a_round(trial, prepared)
    rate = rates[kind]
    trainings = cell.tuning.trials if cell.tuning else 1
    return trainings * sum(rate[release.name] * release.rounds for release in releases)


def _in_words(minutes: float) -> str:
    """Return a time in minutes, or in hours if it is long."""
    if minutes > 90:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.1f} minutes"


def round_kind(trial: Trial, releases: Sequence[Release]) -> RoundKind:
    """Return what cells have in common whose rounds are taken to last equally long.

    Entries of one method may differ in their releases, so the method's name is not enough.
    """
    of_releases = tuple(
        (release.name, release.sample_rate, release.per_round) for release in releases
    )
    return trial.cell.algorithm, trial.data_key, of_releases


def seconds_a_round(trial: Trial, prepared: Prepared) -> dict[str, float]:
    """Run two rounds of each release of a cell, and return the seconds of the second by release.

    If a release has one round, its seconds are returned. Nothing of the training is kept.
    """
    data = prepared.data[trial.data_key]
    cell = trial.cell
    seconds = dict[str, float]()
    threads = max(1, int(prepared.need.cpus))
    with torch.random.fork_rng(devices=[]), threadpool_limits(threads):
        trial_with_data = trial.given(data)
        algorithm = build_algorithm(cell.algorithm, cell.params, trial_with_data.task)
        pool = local_pool(trial_with_data, data)
        schedule = first_rounds(algorithm, 2)
        started = time.perf_counter()
        for record in train(algorithm, pool, trial.plan, Seeds(0), schedule=schedule):
            seconds[record.values["release"]] = time.perf_counter() - started
            started = time.perf_counter()
    return seconds


def audit_time(
    prepared: Prepared, audits: Sequence[ClaimAudit], store: ResultStore
) -> tuple[float, list[str]]:
    """Estimate the minutes of the audits that a folder lacks.

    Each method is estimated by a pair of trainings. Plug-ins have no estimate, because their code
    must not run in this process.

    Returns:
        The minutes, and texts for the user.
    """
    if not audits:
        return 0.0, []
    missing = missing_audits(audits, list(store.lines("audits")))
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
        pairs_left = max(0, audit.run.count - done[audit.run.key])
        known.append(rates[method] * pairs_left)
    minutes = sum(known) / prepared.parallel / 60
    words = []
    if known:
        duration = _in_words(minutes)
        count = counted(len(known), "audit")
        words.append(f"about {duration} for the {count} left")
    if unknown:
        words.append(f"not known for {', '.join(unknown)}")
    return minutes, words


def seconds_a_pair(audit: AuditRun) -> float:
    """Run two pairs of trainings of an audit, and return the seconds of the second.

    The first pair also loads what both need. Nothing of the trainings is kept.
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
