"""No label in common."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from fedsim.errors import UserError
from fedsim.partition.schemes.scheme import Division, Integers, Scheme


def disjoint(division: Division[Any], rng: np.random.Generator) -> Integers:
    """Clients share no label: classes in random order, each whole to the client that has the fewest rows so far."""
    holder = np.zeros(len(division.counts), dtype=np.int64)
    smallest = [(0, client) for client in range(division.clients)]
    for c in rng.permutation(len(holder)):
        size, client = smallest[0]
        holder[c] = client
        heapq.heapreplace(smallest, (size + int(division.counts[c]), client))
    return holder[division.y]


def labels_suffice(division: Division[Any]) -> None:
    """There is a class for every client, with the minimum size."""
    counts, clients, min_size = division.counts, division.clients, division.min_size
    held = np.flatnonzero(counts)  # where groups are divided, a class may be that of none
    if clients > len(held):
        what = f"{clients} clients cannot have disjoint labels with {len(held)} classes"
        raise UserError("clients", what, f"give at most {len(held)} clients")
    rarest = held[counts[held].argmin()]
    if counts[rarest] < min_size:
        what = f"class {rarest} has {counts[rarest]} rows, fewer than {min_size} (partition.min_size)"
        raise UserError("partition.min_size", what, f"give at most {counts[rarest]}")


DISJOINT = Scheme(disjoint, labels_suffice)
