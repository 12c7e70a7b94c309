"""Label skew by Dirichlet draws: per class over clients, or per client over classes."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.partition.schemes.scheme import Division, Integers, Scheme, dealt, even


def dirichlet(division: Division[Any], rng: np.random.Generator) -> Integers:
    """Per class over clients: each class is shared out by its own Dirichlet(alpha) draw (Hsu, Qi and Brown 2019, arXiv 1909.06335).

    Clients below the minimum size then get rows from the largest ones.
    """
    shares = dirichlet_shares(rng, division.alpha, len(division.counts), division.clients)
    edges = np.cumsum(shares, axis=1)
    table = np.empty((division.clients, len(division.counts)), dtype=np.int64)
    for c, count in enumerate(division.counts):
        ends = np.rint(edges[c] / edges[c, -1] * count).astype(np.int64)
        table[:, c] = np.diff(ends, prepend=0)
    return _repaired(dealt(table, division, rng), division, rng)


def dirichlet_client(division: Division[Any], rng: np.random.Generator) -> Integers:
    """Per client over classes: clients of equal size, each with a label mix of its own, Dirichlet(alpha) (arXiv 2102.02079).

    Clients choose in random order; where a class has run out, the rest of a client's rows follow its mix over the classes that are left.
    """
    clients, left = division.clients, division.counts.copy()
    mixes = dirichlet_shares(rng, division.alpha, clients, len(left))
    table = np.zeros((clients, len(left)), dtype=np.int64)
    sizes = even(len(division.y), clients)
    for client in rng.permutation(clients):
        while missing := int(sizes[client] - table[client].sum()):
            # each turn fills the client or empties a class that it wants, so there are at most C + 1
            mix = np.where(left > 0, mixes[client], 0.0)
            mix = mix if mix.sum() > 0 else left.astype(np.float64)
            taken = np.minimum(rng.multinomial(missing, mix / mix.sum()), left)
            table[client] += taken
            left -= taken
    return dealt(table, division, rng)


def dirichlet_shares(rng: np.random.Generator, alpha: float, draws: int, size: int) -> NDArray[np.float64]:
    """Draws from the symmetric Dirichlet(alpha) over ``size`` parts, ``[draws, size]``; any alpha > 0, however small."""
    alpha = max(alpha, 1e-300)
    # log Gamma(alpha) = log Gamma(alpha + 1) + log U / alpha does not underflow for tiny alpha
    log_gamma = np.log(rng.standard_gamma(alpha + 1, (draws, size))) + np.log1p(-rng.random((draws, size))) / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    normalised: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def _repaired(owner: Integers, division: Division[Any], rng: np.random.Generator) -> Integers:
    """Move random rows, one at a time, from whichever client is the largest to those below the minimum size."""
    sizes = np.bincount(owner, minlength=division.clients).tolist()
    poor = [client for client, size in enumerate(sizes) if size < division.min_size]
    largest = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    held: dict[int, list[int]] = {}
    for client in poor:
        for _ in range(division.min_size - sizes[client]):
            # the largest holds more than min_size: there are enough rows for all, and this client has too few
            size, donor = largest[0]
            if donor not in held:
                held[donor] = rng.permutation(np.flatnonzero(owner == donor)).tolist()
            owner[held[donor].pop()] = client
            heapq.heapreplace(largest, (size + 1, donor))
    return owner


DIRICHLET = Scheme(dirichlet, uses_alpha=True)
DIRICHLET_CLIENT = Scheme(dirichlet_client, uses_alpha=True)
