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


def everywhere(variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device) -> None:
    """:func:`fedsim.simulation.rehearsal.rehearse` on every machine of the connected cluster: each must have what a plug-in imports.

    Raises:
        PluginError: a plug-in is refused on one of them.
    """
    machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    remote: Any = ray.remote(rehearse)
    gpus = 0.01 if device.type == "cuda" else 0
    for machine in machines:
        there = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
        try:
            ray.get(
                remote.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=there).remote(variant, task, epsilon, delta, where, device)
            )
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            on = f"on {machine['NodeManagerAddress']}: {error.cause.what}"
            raise PluginError(error.cause.where, on, error.cause.right) from error
