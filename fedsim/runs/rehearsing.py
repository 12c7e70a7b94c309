"""Rehearsing plug-ins where they will run."""

from __future__ import annotations

from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsim.errors import PluginError, UserError
from fedsim.grid.resolve import Variant
from fedsim.methods.messages import Task
from fedsim.planning.rehearsal import rehearse
from fedsim.plugins.places import said

STARTING = 60.0
"""Seconds that a machine may take to begin: a process that imports torch."""


def everywhere(variant: Variant, task: Task, epsilon: float, delta: float, where: str, device: torch.device, seconds: float) -> None:
    """:func:`fedsim.planning.rehearsal.rehearse` on every machine of the connected cluster: each must have what a plug-in imports.

    Raises:
        PluginError: a plug-in is refused on one of them, or ends its process there.
    """
    gpus = 0.01 if device.type == "cuda" else 0
    needs = ("CPU", "GPU") if gpus else ("CPU",)  # others run no cell
    machines = [node for node in ray.nodes() if node["Alive"] and all(map(node["Resources"].get, needs))]  # type: ignore[no-untyped-call]
    remote: Any = ray.remote(rehearse)
    for machine in machines:
        there, on = NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False), f"on {machine['NodeManagerAddress']}"
        place = remote.options(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=there)
        rehearsed = place.remote(variant, task, epsilon, delta, where, device, seconds)
        try:
            ray.get(rehearsed, timeout=seconds + STARTING)
        except ray.exceptions.GetTimeoutError as error:  # in a call into a library, which ends with its process
            ray.cancel(rehearsed, force=True)
            what = f"{on}: a rehearsal on made-up data has not ended after {seconds:g} s and {STARTING:g} s for a process to start"
            raise PluginError(where, what, f"expected {variant.name} to train and sample in that time") from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UserError):
                raise PluginError(cause.where, f"{on}: {cause.what}", cause.hint) from error
            what = f"{on}: a rehearsal on made-up data failed ({said(cause)})"
            raise PluginError(where, what, f"expected {variant.name} to train and sample") from error
