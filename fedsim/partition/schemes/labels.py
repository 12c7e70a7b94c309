"""Few labels a client: none in common with another, or so many each."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from pydantic import Field

from fedsim.errors import UserError
from fedsim.partition.schemes.scheme import Division, Integers, Scheme, SchemeParams, dealt, even


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
    held = np.flatnonzero(counts)  # where groups are divided, a class may be the label of none
    if clients > len(held):
        what = f"{clients} clients cannot have disjoint labels with {len(held)} classes"
        raise UserError("clients", what, f"give at most {len(held)} clients")
    rarest = held[counts[held].argmin()]
    if counts[rarest] < min_size:
        what = f"class {rarest} has {counts[rarest]} rows, fewer than {min_size} (partition.min_size)"
        raise UserError("partition.min_size", what, f"give at most {counts[rarest]}")


class ShardsParams(SchemeParams):
    """Parameters of scheme ``shards``.

    Attributes:
        labels: how many labels each client holds.
    """

    labels: int = Field(default=2, ge=1, strict=True)


def shards(division: Division[ShardsParams], rng: np.random.Generator) -> Integers:
    """Every client holds exactly ``labels`` labels (after McMahan et al. 2017, arXiv 1602.05629, with shards that never mix labels).

    Classes are cut into shards, the larger ones into more; a client gets shards of different classes.

    Raises:
        UserError: the classes cannot be cut so that every client reaches the minimum size.
    """
    holders = _shards_per_class(division.counts, division.clients, division.given.labels)
    free = np.full(division.clients, division.given.labels)
    table = np.zeros((division.clients, len(holders)), dtype=np.int64)
    for c in np.argsort(-holders, kind="stable")[: np.count_nonzero(holders)]:
        # those with the most shards still to come; so no class meets fewer free clients than it needs (Gale-Ryser)
        order = rng.permutation(division.clients)
        chosen = order[np.argsort(-free[order], kind="stable")][: holders[c]]
        free[chosen] -= 1
        table[chosen, c] = even(int(division.counts[c]), int(holders[c]))
    table = _levelled(table, division.min_size)
    return dealt(table, division, rng)


def _shards_per_class(counts: Integers, clients: int, labels: int) -> Integers:
    """How many clients hold each class: by its size, at least 1, at most as many as it has rows or as there are clients.

    Where groups are divided, a class may be the label of none, and no client holds it.
    """
    most = np.minimum(counts, clients)
    holders = np.minimum(counts, 1)
    # the next shard always comes from the class whose shards are the largest
    heap = [(-float(count), c) for c, count in enumerate(counts) if most[c] > 1]
    heapq.heapify(heap)
    for _ in range(clients * labels - int(holders.sum())):
        _, c = heap[0]
        holders[c] += 1
        if holders[c] < most[c]:
            heapq.heapreplace(heap, (-float(counts[c] / holders[c]), c))
        else:
            heapq.heappop(heap)
    return holders


def _levelled(table: Integers, least: int) -> Integers:
    """Let clients below ``least`` rows take rows of their own labels from the largest holder of the label."""
    sizes = table.sum(axis=1)
    for client in np.flatnonzero(sizes < least):
        for c in np.flatnonzero(table[client]):
            spare = np.where(table[:, c] > 1, np.minimum(table[:, c] - 1, sizes - least), 0).clip(min=0)
            for donor in np.argsort(-spare, kind="stable"):
                moved = min(int(spare[donor]), int(least - sizes[client]))
                if moved <= 0:
                    break
                table[donor, c] -= moved
                table[client, c] += moved
                sizes[donor] -= moved
                sizes[client] += moved
        if sizes[client] < least:
            what = f"scheme 'shards' leaves client {client} with {sizes[client]} rows, fewer than {least}"
            raise UserError("partition.min_size", what, "give a smaller min_size, fewer clients or more labels")
    return table


def shards_fit(division: Division[ShardsParams]) -> None:
    """Every client finds so many labels, and every class a client."""
    counts, clients, labels = division.counts, division.clients, division.given.labels
    classes, shards = np.count_nonzero(counts), clients * labels
    if labels > classes:
        what = f"a client cannot hold {labels} labels, the data set has {classes} classes"
        raise UserError("partition.labels", what, f"give at most {classes}")
    if shards < classes:
        what = f"{clients} clients × {labels} labels = {shards} shards cannot hold {classes} classes, so some would vanish"
        raise UserError("partition.labels", what, f"give at least {-(-classes // clients)}")
    most = int(np.minimum(counts, clients).sum())
    if shards > most:
        what = f"{clients} clients × {labels} labels = {shards} shards, but small classes allow {most} at most"
        fit = most // clients
        raise UserError("partition.labels", what, f"give at most {fit}" if clients * fit >= classes else "give fewer clients")


DISJOINT = Scheme(disjoint, labels_suffice)
SHARDS = Scheme(shards, shards_fit, ShardsParams)
