"""Ray as the engine: start or join a cluster quietly, and slots that hold the actors of a cell."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedsim.config import Resources

# Read by Ray as it is imported and started: nothing is reported to anyone, its logs stay in its own folder.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.runtime.worker import CohortActor, TrialWorker


@contextmanager
def cluster(address: str | None) -> Iterator[tuple[float, float]]:
    """A Ray cluster for the block: a new local one, or the one at ``address``; yields its CPUs and GPUs."""
    ray.init(
        address=address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=f"fedsim-{os.getpid()}",
    )
    try:
        total = ray.cluster_resources()
        yield float(total.get("CPU", 0)), float(total.get("GPU", 0))
    finally:
        ray.shutdown()


@dataclass
class Slot:
    """The actors of one cell, placed together; kept for the next cell of the same shape.

    Attributes:
        actors: how many actors compute; with one, the worker hosts all clients itself.
        worker: the trial worker.
        cohorts: the cohort actors, where there are several.
        group: their placement group.
    """

    actors: int
    worker: Any
    cohorts: list[Any]
    group: PlacementGroup

    @classmethod
    def open(cls, actors: int, resources: Resources) -> Slot:
        """Reserve the shares of all actors at once, so that cells never wait for each other's, and start the actors."""
        share = {"CPU": resources.cpus_per_actor}
        if resources.gpus_per_actor:
            share["GPU"] = resources.gpus_per_actor
        group = placement_group([share] * actors, strategy="PACK")

        def placed(kind: type, bundle: int, shared: bool = False) -> Any:
            return ray.remote(kind).options(
                num_cpus=0 if shared else resources.cpus_per_actor,
                num_gpus=0 if shared else resources.gpus_per_actor,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
            )

        cpus = resources.cpus_per_actor
        if actors == 1:
            return cls(1, placed(TrialWorker, 0).remote(cpus), [], group)
        cohorts = [placed(CohortActor, index).remote(cpus) for index in range(actors)]
        return cls(actors, placed(TrialWorker, 0, shared=True).remote(cpus, cohorts), cohorts, group)

    def close(self) -> None:
        """End the actors and give their shares back."""
        for actor in (self.worker, *self.cohorts):
            ray.kill(actor)
        remove_placement_group(self.group)
