"""Pairs of worlds that differ in one client: which client, beside which others, under which clip norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice, permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.evidence.check.neighbours import FEW, FEW_ROUNDS, SMALL_CLIP, Pair, Rows, clip_of, contributions, everyone, late
from fedsim.evidence.check.subject import Subject
from fedsim.privacy.plan import Release
from fedsim.seeds import Purpose, Seeds

RESAMPLED = "another sample of clients"
"""The pair whose worlds hold the same clients."""
TRIED_SEEDS = 200
"""How many seeds are tried for one whose samples show what a pair is there to show."""
OTHER_ROWS_SEEDS = 2
"""With how many seeds each client has other rows."""


def takes_part(seed: int, step: int, client: int, release: Release) -> bool:
    """Whether the stream by which :meth:`fedsim.methods.clients.Clients.poisson` samples whole clients puts ``client`` into ``step``."""
    drawn = Seeds(seed).keystream(Purpose.SAMPLING, step, client).uniform(1)[0]
    return bool(drawn < release.sample_rate)


def client_pairs(subject: Subject) -> Iterator[Pair]:
    """Pairs for unit client; few of them for a quick subject."""
    characters = list(_characters(subject))
    yield from characters
    if subject.quick:
        yield from islice(_other_rows(subject, 1), 1)
        return
    for client in range(len(subject.trial.partition.rows)):
        yield from _other_rows(subject, client)
    for pair in late(subject, characters[1]):
        *_, last = pair.late
        yield replace(pair, seed=next(_seeds(1, last.release, {last.stream: True}), 0))
    given = _contributions(subject)
    if given is not None:
        yield from _unsaturated(subject, given)
        yield from _two_sizes(subject, given)


def sampled_pairs(subject: Subject, release: Release) -> Iterator[Pair]:
    """One client less, of seeds in which it takes part in the first step and not in the second; for a release of the first rounds.

    Last the same clients, of whom one takes part in the first step in one world and in the second in the other.
    """
    held = subject.trial.partition.rows
    for client in (1, len(held) - 1):
        yield _less(subject, "a client", client, held, next(_seeds(client, release, {0: True, 1: False}), 0), 1.0)
    world = everyone(subject)
    second, first = (next(_seeds(1, release, {0: part, 1: not part}), 0) for part in (False, True))
    yield Pair(RESAMPLED, world, replace(world, secret=second), first, 1.0)


def _seeds(client: int, release: Release, parts: Mapping[int, bool]) -> Iterator[int]:
    """Seeds with which ``client`` is in the samples of the steps that ``parts`` names or not, of those that are tried."""
    for seed in range(TRIED_SEEDS):
        if all(takes_part(seed, step, client, release) == part for step, part in parts.items()):
            yield seed


def _characters(subject: Subject) -> Iterator[Pair]:
    """Clients of several kinds, over all rounds."""
    held = subject.trial.partition.rows
    yield _less(subject, "an ordinary client", 3, held, 0, 1.0)
    yield _less(subject, "a client with rows against the mean", 1, held, 1, SMALL_CLIP, _against_the_mean(subject, 1))
    yield _less(subject, "a client among small ones", 2, tuple(r if i == 2 else r[:FEW] for i, r in enumerate(held)), 2, SMALL_CLIP)


def _against_the_mean(subject: Subject, client: int) -> NDArray[np.float32]:
    """All rows, where those of ``client`` are the opposite of the mean row."""
    x, mean = subject.data.x_train.copy(), subject.data.x_train.mean(0)
    x[subject.trial.partition.rows[client]] = -mean / np.linalg.norm(mean)
    return x


def _other_rows(subject: Subject, client: int) -> Iterator[Pair]:
    """A client with other rows, of which no trace may be left but in what is noised; with seeds with which it takes part at once."""
    whole = everyone(subject)
    fewer = tuple(own[:-3] if i == client else own for i, own in enumerate(whole.rows))
    other = replace(whole, x=_against_the_mean(subject, client), rows=fewer)
    release = subject.algorithm.releases()[0]
    for seed in islice(_seeds(client, release, {0: True}), OTHER_ROWS_SEEDS):
        yield Pair(f"client {client} with other rows", whole, other, seed)


def _less(
    subject: Subject,
    label: str,
    client: int,
    rows: Rows,
    seed: int,
    clip: float,
    x: NDArray[np.float32] | None = None,
    rounds: int | None = None,
) -> Pair:
    """The pair whose ``other`` lacks ``client``."""
    whole = everyone(subject, rows)
    whole = whole if x is None else replace(whole, x=x)
    others = tuple(own for i, own in enumerate(rows) if i != client)
    other = replace(whole, rows=others, members=tuple(i for i in whole.members if i != client))
    return Pair(label, whole, other, seed, clip, rounds=rounds, client=client)


def _contributions(subject: Subject) -> Tensor | None:
    """The norm of what each client adds to the first round, in units of the clip norm; None where no parameter sets that."""
    if clip_of(subject) is None:
        return None
    norms = _each_alone(subject, subject.trial.partition.rows, 0)
    return torch.tensor(norms) if min(norms) > 0 else None


def _each_alone(subject: Subject, rows: Rows, seed: int) -> list[float]:
    """Norms in units of the clip norm, of clients with ``rows``, each alone and nothing clipped."""
    return contributions(subject, [replace(everyone(subject, (own,)), members=(client,)) for client, own in enumerate(rows)], seed)


def _unsaturated(subject: Subject, given: Tensor) -> Iterator[Pair]:
    """Each client, where half of them, and where none, are clipped at the start."""
    held = subject.trial.partition.rows
    for words, clip in (("half of them are", float(given.median())), ("hardly one is", 1.01 * float(given.max()))):
        for client in range(len(held)):
            yield _less(subject, f"client {client} where {words} clipped", client, held, 0, clip, rounds=FEW_ROUNDS)


def _two_sizes(subject: Subject, given: Tensor) -> Iterator[Pair]:
    """Sizes chosen so that one client moves the median of three clients, or the mean of four."""
    held = subject.trial.partition.rows
    large = held[int(given.argmax())]
    small = large[: max(len(large) // FEW, 1)]
    for words, rows in (("median", (large, small, large)), ("mean", (large, small, small, small))):
        tried = ((seed, _each_alone(subject, rows, seed)) for seed in range(TRIED_SEEDS))
        seed, norms = next((one for one in tried if _as_large_as_their_rows(rows, one[1])), (0, []))
        if norms:
            clip = 1.01 * (sorted(norms)[1] if words == "median" else sum(norms) / len(norms))
            yield _less(subject, f"a client that moves the {words} of the updates' norms", 0, rows, seed, clip, rounds=FEW_ROUNDS)


def _as_large_as_their_rows(rows: Rows, norms: list[float]) -> bool:
    """Whether every client adds something in the first round, and each with more rows more."""
    pairs = permutations(zip(map(len, rows), norms, strict=True), 2)
    return min(norms) > 0 and all(norm > less for (held, norm), (fewer, less) in pairs if held > fewer)
