"""Rehearsing plug-ins where they will run."""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsim.errors import PluginError, UserError
from fedsim.grid.resolve import Variant
from fedsim.methods.messages import Task
from fedsim.simulation.rehearsal import rehearse

STARTING = 60.0
"""Seconds that a machine may take to begin: a process that imports torch."""


def everywhere(variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device, seconds: float) -> None:
    """:func:`fedsim.simulation.rehearsal.rehearse` on every machine of the connected cluster: each must have what a plug-in imports.

    Raises:
        PluginError: a plug-in is refused on one of them.
    """
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    remote: Any = ray.remote(rehearse)
    gpus = 0.01 if device.type == "cuda" else 0
    for machine in machines:
        there, on = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False), f"on {machine['NodeManagerAddress']}"
        place = remote.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=there)
        rehearsed = place.remote(variant, task, epsilon, delta, where, device, seconds)
        try:
            ray.get(rehearsed, timeout=seconds + STARTING)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            raise PluginError(error.cause.where, f"{on}: {error.cause.what}", error.cause.right) from error
        except ray.exceptions.GetTimeoutError as error:  # in a call into a library, which ends with its process
            ray.cancel(rehearsed, force=True)
            what = f"{on}: a rehearsal on made-up data has not ended after {seconds:g} s and {STARTING:g} s for a process to start"
            raise PluginError(where, what, f"expected {variant.name} to train and sample in that time") from error
