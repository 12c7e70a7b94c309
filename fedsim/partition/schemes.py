"""The schemes: each yields the owner of every training row, from labels, columns, parameters and one random stream.

Every procedure is bounded: nothing is drawn again until it fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError

if TYPE_CHECKING:
    from fedsim.partition.spec import PartitionSpec

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """What a scheme sees: labels int64 ``[n]``, columns each ``[n]``, the parameters, and its random stream."""

    y: Integers
    columns: Mapping[str, NDArray[Any]]
    spec: PartitionSpec
    alpha: float
    clients: int
    rng: np.random.Generator

    @property
    def counts(self) -> Integers:
        """Rows of each class, int64 ``[C]``."""
        return np.bincount(self.y)


def dirichlet(division: Division) -> Integers:
    """Per class over clients: each class is shared out by its own Dirichlet(alpha) draw (Hsu, Qi and Brown 2019, arXiv 1909.06335).

    Clients below the minimum size then get rows from the largest ones.
    """
    shares = dirichlet_shares(division.rng, division.alpha, len(division.counts), division.clients)
    edges = np.cumsum(shares, axis=1)
    table = np.empty((division.clients, len(division.counts)), dtype=np.int64)
    for c, count in enumerate(division.counts):
        ends = np.rint(edges[c] / edges[c, -1] * count).astype(np.int64)
        table[:, c] = np.diff(ends, prepend=0)
    return _repaired(_dealt(table, division), division)


def dirichlet_client(division: Division) -> Integers:
    """Per client over classes: clients of equal size, each with a label mix of its own, Dirichlet(alpha) (arXiv 2102.02079).

    Clients choose in random order; where a class has run out, the rest of a client's rows follow its mix over the classes that are left.
    """
    clients, rng, left = division.clients, division.rng, division.counts.copy()
    mixes = dirichlet_shares(rng, division.alpha, clients, len(left))
    table = np.zeros((clients, len(left)), dtype=np.int64)
    sizes = _even(len(division.y), clients)
    for client in rng.permutation(clients):
        while missing := int(sizes[client] - table[client].sum()):
            # each turn fills the client or empties a class that it wants, so there are at most C + 1
            mix = np.where(left > 0, mixes[client], 0.0)
            mix = mix if mix.sum() > 0 else left.astype(np.float64)
            taken = np.minimum(rng.multinomial(missing, mix / mix.sum()), left)
            table[client] += taken
            left -= taken
    return _dealt(table, division)


def shards(division: Division) -> Integers:
    """Every client holds exactly ``labels`` labels (after McMahan et al. 2017, arXiv 1602.05629, with shards that never mix labels).

    Classes are cut into shards, the larger ones into more; a client gets shards of different classes.

    Raises:
        UserError: the classes cannot be cut so that every client reaches the minimum size.
    """
    holders = _shards_per_class(division.counts, division.clients, int(division.spec.labels or 0))
    free = np.full(division.clients, division.spec.labels)
    table = np.zeros((division.clients, len(holders)), dtype=np.int64)
    for c in np.argsort(-holders, kind="stable"):
        # those with the most shards still to come; so no class meets fewer free clients than it needs (Gale-Ryser)
        order = division.rng.permutation(division.clients)
        chosen = order[np.argsort(-free[order], kind="stable")][: holders[c]]
        free[chosen] -= 1
        table[chosen, c] = _even(int(division.counts[c]), int(holders[c]))
    table = _levelled(table, division.spec.min_size)
    return _dealt(table, division)


def _shards_per_class(counts: Integers, clients: int, labels: int) -> Integers:
    """How many clients hold each class: by its size, at least 1, at most as many as it has rows or as there are clients."""
    most = np.minimum(counts, clients)
    holders = np.ones(len(counts), dtype=np.int64)
    # the next shard always comes from the class whose shards are the largest
    heap = [(-float(count), c) for c, count in enumerate(counts) if most[c] > 1]
    heapq.heapify(heap)
    for _ in range(clients * labels - len(counts)):
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


def quantity(division: Division) -> Integers:
    """Labels at random, sizes by a power law: the client of rank r holds rows in proportion to ``r ** -power`` above the minimum."""
    clients, least = division.clients, division.spec.min_size
    weights = np.arange(1, clients + 1) ** -float(division.spec.power or 0.0)
    sizes = least + _apportioned(len(division.y) - clients * least, division.rng.permutation(weights))
    return division.rng.permutation(np.repeat(np.arange(clients), sizes))


def iid(division: Division) -> Integers:
    """Rows at random, sizes equal to within one."""
    owner: Integers = division.rng.permutation(np.arange(len(division.y)) % division.clients)
    return owner


def disjoint(division: Division) -> Integers:
    """Clients share no label: classes in random order, each whole to the client that has the fewest rows so far."""
    holder = np.zeros(len(division.counts), dtype=np.int64)
    smallest = [(0, client) for client in range(division.clients)]
    for c in division.rng.permutation(len(holder)):
        size, client = smallest[0]
        holder[c] = client
        heapq.heapreplace(smallest, (size + int(division.counts[c]), client))
    return holder[division.y]


def column(division: Division) -> Integers:
    """The clients are the values of a column, in sorted order."""
    _, owner = np.unique(division.columns[str(division.spec.column)], return_inverse=True)
    return owner.astype(np.int64)


SCHEMES: dict[str, Callable[[Division], Integers]] = {
    "dirichlet": dirichlet,
    "dirichlet-client": dirichlet_client,
    "disjoint": disjoint,
    "shards": shards,
    "iid": iid,
    "quantity": quantity,
    "column": column,
    "feature-shift": iid,
}
"""The schemes by name; each yields the owner int64 ``[n]`` of every training row."""


def dirichlet_shares(rng: np.random.Generator, alpha: float, draws: int, size: int) -> NDArray[np.float64]:
    """Draws from the symmetric Dirichlet(alpha) over ``size`` parts, ``[draws, size]``; any alpha > 0, however small."""
    alpha = max(alpha, 1e-300)
    # log Gamma(alpha) = log Gamma(alpha + 1) + log U / alpha does not underflow for tiny alpha
    log_gamma = np.log(rng.standard_gamma(alpha + 1, (draws, size))) + np.log1p(-rng.random((draws, size))) / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _dealt(table: Integers, division: Division) -> Integers:
    """Owners by a table ``[clients, C]`` of how many rows of each class a client holds; which rows is random."""
    owner = np.empty(len(division.y), dtype=np.int64)
    for c in range(table.shape[1]):
        rows = division.rng.permutation(np.flatnonzero(division.y == c))
        owner[rows] = np.repeat(np.arange(len(table)), table[:, c])
    return owner


def _even(total: int, parts: int) -> Integers:
    """Whole sizes equal to within one."""
    sizes = np.full(parts, total // parts, dtype=np.int64)
    sizes[: total % parts] += 1
    return sizes


def _apportioned(total: int, weights: NDArray[np.float64]) -> Integers:
    """Whole parts of ``total`` in proportion to ``weights``, by largest remainders."""
    exact = total * weights / weights.sum()
    parts: Integers = np.floor(exact).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


def _repaired(owner: Integers, division: Division) -> Integers:
    """Move random rows, one at a time, from whichever client is the largest to those below the minimum size."""
    sizes = np.bincount(owner, minlength=division.clients).tolist()
    poor = [client for client, size in enumerate(sizes) if size < division.spec.min_size]
    largest = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    held: dict[int, list[int]] = {}
    for client in poor:
        for _ in range(division.spec.min_size - sizes[client]):
            # the largest holds more than min_size: there are enough rows for all, and this client has too few
            size, donor = largest[0]
            if donor not in held:
                held[donor] = division.rng.permutation(np.flatnonzero(owner == donor)).tolist()
            owner[held[donor].pop()] = client
            heapq.heapreplace(largest, (size + 1, donor))
    return owner
