"""How much of a GPU a cell takes: the least that it can need, and the share that what was measured asks for."""

from __future__ import annotations

import math

import torch

from fedsim.data.embeddings import Embeddings
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Trial

HEAD_ROOM = 1.5
"""Later rounds, the averages that some keep and the synthesis take more than the first round."""
MOST_ACTORS_PER_GPU = 16
"""Actors that share a GPU."""
GIB = 2**30
COPIES_PER_PARAMETER = 4
"""Of a parameter: itself, its gradient, and Adam's two moments."""


def least(trial: Trial, data: Embeddings) -> tuple[float, float]:
    """Bytes that the largest actor of a cell needs at least: for rows (the data set's and its clients' own), and for parameters."""
    width = 4 * data.dim + 8
    start, own = 0, 0
    for size in trial.sizes:
        own = max(own, sum(map(len, trial.partition.rows[start : start + size])))
        start += size
    with torch.device("meta"):
        model = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task).build(max(trial.sizes))
    return float(width * (len(data.y_train) + own)), float(4 * COPIES_PER_PARAMETER * sum(p.numel() for p in model.parameters()))


def share_for(measured: float) -> float:
    """The share of a GPU for actors that filled the part ``measured`` of one in their first round: 1 / n, so that n fill it."""
    return even_share(max(1, min(MOST_ACTORS_PER_GPU, math.floor(1 / max(measured * HEAD_ROOM, 1 / MOST_ACTORS_PER_GPU)))))


def doubled(share: float) -> float:
    """The smallest share of so many equal ones that is twice a share or more; at most a whole GPU."""
    return even_share(max(1, math.floor(1 / (2 * share))))


def even_share(actors: int) -> float:
    """The share of each of so many actors on a GPU; Ray counts in parts of ten thousand."""
    return math.floor(10_000 / actors) / 10_000


def filled(device: torch.device) -> float:
    """The part of this process's GPU that is taken; 0 on another device."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return 1 - free / total
