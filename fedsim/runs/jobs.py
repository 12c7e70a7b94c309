"""What runs on slots: cells, the references that their rows need, measurements, and audits; and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedsim.evidence.audit.of_grid import ClaimAudit
from fedsim.partition import Partition, PartitionSpec
from fedsim.training.trial import Trial
from fedsim.words import number

ReferenceKey = tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A score of real data that several rows show: the ceiling, or local-only for one partition.

    Attributes:
        key: what it depends on.
        dataset: the data set's key.
        partition: None for the ceiling.
        spec: the partition's.
        probe_c: the probe's.
    """

    key: ReferenceKey
    dataset: str
    partition: Partition | None
    spec: PartitionSpec
    probe_c: float


def references_of(trial: Trial) -> tuple[Reference, Reference]:
    """A cell's ceiling and its local-only reference."""
    cell, partition = trial.cell, trial.partition
    data, spec, c = trial.data_key, cell.partition, cell.evaluation.probe_c
    return (
        Reference(("ceiling", data, str(c)), data, None, spec, c),
        Reference(("local-only", data, spec.scheme, partition.fingerprint, str(c)), data, partition, spec, c),
    )


@dataclass(frozen=True)
class Measuring:
    """The first round of the first cell of its shape, on a GPU of its own, to see how much of it such cells need."""

    trial: Trial

    @property
    def shape(self) -> str:
        """What decides how much memory a cell needs; equal for cells that are alike but for their seed and their budget."""
        return shape_of(self.trial)


Job = Trial | Reference | Measuring | ClaimAudit


def shape_of(trial: Trial) -> str:
    """What decides how much memory a cell needs."""
    return repr((trial.cell.algorithm, sorted(trial.cell.params.items()), trial.task, trial.sizes, trial.cell.dataset.key))


def with_references(trials: Iterable[Trial], finished: Iterable[Trial]) -> Iterator[Trial | Reference]:
    """The references of finished cells, then the other cells, each reference right before the first cell that needs it."""
    seen: set[ReferenceKey] = set()
    for trial, runs in (*((trial, False) for trial in finished), *((trial, True) for trial in trials)):
        for reference in references_of(trial):
            if reference.key not in seen:
                seen.add(reference.key)
                yield reference
        if runs:
            yield trial


def with_measurements(jobs: Iterable[Trial | Reference]) -> Iterator[Job]:
    """The jobs, a measurement right before the first cell of each shape."""
    seen: set[str] = set()
    for job in jobs:
        if isinstance(job, Trial) and (shape := shape_of(job)) not in seen:
            seen.add(shape)
            yield Measuring(job)
        yield job


def key_of(job: Job) -> tuple[str, ...]:
    """What tells a job from every other of a bench."""
    if isinstance(job, Reference):
        return job.key
    if isinstance(job, Measuring):
        return "first round", job.shape
    if isinstance(job, ClaimAudit):
        return "audit", job.run.key
    return "cell", job.cell.cell_id


def named(job: Job) -> str:
    """What a job is called in a message; references of a kind share it."""
    if isinstance(job, Reference):
        return f"the {job.key[0]} reference"
    if isinstance(job, Measuring):
        return f"the first round of {job.trial.cell.label}"
    if isinstance(job, ClaimAudit):
        return f"the audit of {job.label} at ε = {number(job.epsilon)}"
    return f"{job.cell.label} (cell {job.cell.cell_id})"
