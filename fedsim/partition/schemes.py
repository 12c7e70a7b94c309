"""The schemes: which client holds a training row, from labels, columns, the spec and one random
stream.

A scheme is bounded: nothing is drawn again until it fits. What data do not allow is refused with a
grid's key as its place.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.spec import changed
from fedsim.data.split import lacking
from fedsim.errors import UserError, nearest

Scheme = Literal[
    "dirichlet",
    "dirichlet-client",
    "disjoint",
    "shards",
    "iid",
    "quantity",
    "column",
    "column-dirichlet",
    "feature-shift",
]
_OWN = {
    "labels": ("shards",),
    "power": ("quantity",),
    "column": ("column", "column-dirichlet"),
    "strength": ("feature-shift",),
}
"""Keys that are not every scheme's, and whose they are."""


class PartitionSpec(BaseModel):
    """How rows are divided among clients.

    Attributes:
        scheme: which clients hold a row.
        min_size: the fewest rows that a client may hold; of groups that stay together the fewest
            groups.
        together: a column whose rows of one value stay with one client, such as a patient's; a
            grid's unit, where it is such a column.
        labels: of ``shards``: how many labels each client holds.
        power: of ``quantity``: the client of rank r holds rows in proportion to ``r ** -power``.
        column: of ``column`` and ``column-dirichlet``: the data set's column whose values are the
            clients', or have clients of their own.
        strength: of ``feature-shift``: size of each client's shift, 0 = none; at 10 a client's rows
            are hardly more than its own direction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    together: str | None = Field(default=None, min_length=1)
    labels: int = Field(default=2, ge=1, strict=True)
    power: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False, strict=True)
    column: str | None = Field(default=None, min_length=1)
    strength: float = Field(default=0.5, ge=0, le=10, allow_inf_nan=False, strict=True)

    @model_validator(mode="after")
    def _of_one_scheme(self) -> Self:
        if wrong := next(
            (name for name in sorted(changed(self) & _OWN.keys()) if self.scheme not in _OWN[name]),
            None,
        ):
            raise ValueError(
                f"scheme '{self.scheme}' takes no {wrong}; remove it or give scheme: "
                f"{' or '.join(_OWN[wrong])}"
            )
        if self.scheme in _OWN["column"] and self.column is None:
            raise ValueError(
                f"scheme '{self.scheme}' needs the name of a column; give column: NAME"
            )
        return self

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return "dirichlet" in self.scheme

    @property
    def shifts(self) -> bool:
        """Whether every client sees values of its own."""
        return self.scheme == "feature-shift"


Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Division:
    """What is to be divided: labels int64 ``[n]`` in 0 .. C-1 and columns ``[n]``, among how many
    clients, how, at which alpha > 0.
    """

    y: Integers
    columns: Mapping[str, NDArray[Any]]
    clients: int
    spec: PartitionSpec
    alpha: float = 1.0

    @property
    def counts(self) -> Integers:
        """Rows of each class, int64 ``[C]``."""
        return np.bincount(self.y)


Owner = Callable[[Division, np.random.Generator], Integers]
"""The owner int64 ``[n]`` of every row."""


def dirichlet(division: Division, rng: np.random.Generator) -> Integers:
    """Per class over clients: each class is shared out by its own Dirichlet(alpha) draw (Hsu, Qi
    and Brown 2019, arXiv 1909.06335).

    Clients below the minimum size then get rows from the largest ones.
    """
    shares = dirichlet_shares(rng, division.alpha, len(division.counts), division.clients)
    edges = np.cumsum(shares, axis=1)
    table = np.empty((division.clients, len(division.counts)), dtype=np.int64)
    for c, count in enumerate(division.counts):
        ends = np.rint(edges[c] / edges[c, -1] * count).astype(np.int64)
        table[:, c] = np.diff(ends, prepend=0)
    return _repaired(_dealt(table, division, rng), division, rng)


def dirichlet_client(division: Division, rng: np.random.Generator) -> Integers:
    """Per client over classes: clients of equal size, each with a label mix of its own,
    Dirichlet(alpha) (arXiv 2102.02079).

    Clients choose in random order; where a class has run out, the rest of a client's rows follow
    its mix over the classes that are left.
    """
    clients = division.clients
    left = division.counts.copy()
    mixes = dirichlet_shares(rng, division.alpha, clients, len(left))
    table = np.zeros((clients, len(left)), dtype=np.int64)
    sizes = _even(len(division.y), clients)
    for client in rng.permutation(clients):
        while missing := int(sizes[client] - table[client].sum()):
            # each turn fills the client or empties a class that it wants, so there are at most C +
            # 1
            mix = np.where(left > 0, mixes[client], 0.0)
            if not (mix.sum() > 0):
                mix = left.astype(np.float64)
            taken = np.minimum(rng.multinomial(missing, mix / mix.sum()), left)
            table[client] += taken
            left -= taken
    return _dealt(table, division, rng)


def dirichlet_shares(
    rng: np.random.Generator, alpha: float, draws: int, size: int
) -> NDArray[np.float64]:
    """Draws from the symmetric Dirichlet(alpha) over ``size`` parts, ``[draws, size]``; any alpha >
    0, however small.
    """
    alpha = max(alpha, 1e-300)
    # log Gamma(alpha) = log Gamma(alpha + 1) + log U / alpha does not underflow for tiny alpha
    log_gamma = (
        np.log(rng.standard_gamma(alpha + 1, (draws, size)))
        + np.log1p(-rng.random((draws, size))) / alpha
    )
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def disjoint(division: Division, rng: np.random.Generator) -> Integers:
    """Clients share no label: classes in random order, each whole to the client that has the fewest
    rows so far.
    """
    holder = np.zeros(len(division.counts), dtype=np.int64)
    smallest = [(0, client) for client in range(division.clients)]
    for c in rng.permutation(len(holder)):
        size, client = smallest[0]
        holder[c] = client
        heapq.heapreplace(smallest, (size + int(division.counts[c]), client))
    return holder[division.y]


def shards(division: Division, rng: np.random.Generator) -> Integers:
    """Every client holds exactly ``labels`` labels (after McMahan et al. 2017, arXiv 1602.05629,
    with shards that never mix labels).

    Classes are cut into shards, the larger ones into more; a client gets shards of different
    classes.
    """
    labels = division.spec.labels
    holders = _shards_per_class(division.counts, division.clients, labels)
    free = np.full(division.clients, labels)
    table = np.zeros((division.clients, len(holders)), dtype=np.int64)
    for c in np.argsort(-holders, kind="stable")[: np.count_nonzero(holders)]:
        # those with the most shards still to come; so no class meets fewer free clients than it
        # needs (Gale-Ryser)
        order = rng.permutation(division.clients)
        chosen = order[np.argsort(-free[order], kind="stable")][: holders[c]]
        free[chosen] -= 1
        table[chosen, c] = _even(int(division.counts[c]), int(holders[c]))
    return _dealt(_levelled(table, division.spec.min_size), division, rng)


def _shards_per_class(counts: Integers, clients: int, labels: int) -> Integers:
    """How many clients hold each class: by its size, at least 1, at most as many as it has rows or
    as there are clients.

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
    """Let clients below ``least`` rows take rows of their own labels from the largest holder of the
    label.
    """
    sizes = table.sum(axis=1)
    for client in np.flatnonzero(sizes < least):
        for c in np.flatnonzero(table[client]):
            spare = np.where(table[:, c] > 1, np.minimum(table[:, c] - 1, sizes - least), 0).clip(
                min=0
            )
            for donor in np.argsort(-spare, kind="stable"):
                moved = min(int(spare[donor]), int(least - sizes[client]))
                if moved <= 0:
                    break
                for holder, rows in ((donor, -moved), (client, moved)):
                    table[holder, c] += rows
                    sizes[holder] += rows
        if sizes[client] < least:
            what = (
                f"scheme 'shards' leaves client {client} with {sizes[client]} rows, fewer "
                f"than {least}"
            )
            raise UserError(
                "partition.min_size", what, "give a smaller min_size, fewer clients or more labels"
            )
    return table


def iid(division: Division, rng: np.random.Generator) -> Integers:
    """Rows at random, sizes equal to within one."""
    owner: Integers = rng.permutation(np.arange(len(division.y)) % division.clients)
    return owner


def quantity(division: Division, rng: np.random.Generator) -> Integers:
    """Labels at random, sizes by a power law: the client of rank r holds rows in proportion to ``r
    ** -power`` above the minimum.
    """
    clients = division.clients
    least = division.spec.min_size
    weights = rng.permutation(np.arange(1, clients + 1) ** -division.spec.power)
    exact = (len(division.y) - clients * least) * weights / weights.sum()
    parts: Integers = np.floor(exact).astype(np.int64)
    # the largest remainders take what rounding down left over
    parts[
        np.argsort(parts - exact, kind="stable")[
            : len(division.y) - clients * least - int(parts.sum())
        ]
    ] += 1
    return rng.permutation(np.repeat(np.arange(clients), least + parts))


def column(division: Division, _: np.random.Generator) -> Integers:
    """The clients are the values of a column, in sorted order."""
    return np.unique(division.columns[str(division.spec.column)], return_inverse=True)[1].astype(
        np.int64
    )


def column_dirichlet(division: Division, rng: np.random.Generator) -> Integers:
    """Every value's rows are shared out among clients of its own, their labels by Dirichlet(alpha)
    draws.

    Each value has a client; the further ones go, one by one, where there are the most rows a
    client. Clients stand in the order of the values.
    """
    place = column(division, rng)
    owner = np.empty_like(place)
    first = 0
    for value, count in enumerate(_clients_of(np.bincount(place), division.clients)):
        own = np.flatnonzero(place == value)
        y = np.unique(division.y[own], return_inverse=True)[1]
        owner[own] = first + dirichlet(replace(division, y=y, clients=int(count)), rng)
        first += int(count)
    return owner


def _clients_of(rows: Integers, clients: int) -> Integers:
    """How many clients each value has."""
    clients_of = np.ones(len(rows), np.int64)
    for _ in range(clients - len(rows)):
        clients_of[np.argmax(rows / clients_of)] += 1
    return clients_of


OWNERS: dict[str, Owner] = {
    "dirichlet": dirichlet,
    "dirichlet-client": dirichlet_client,
    "disjoint": disjoint,
    "shards": shards,
    "iid": iid,
    "quantity": quantity,
    "column": column,
    "column-dirichlet": column_dirichlet,
    "feature-shift": iid,
}
"""The schemes by the names that a grid gives them."""


def _dealt(table: Integers, division: Division, rng: np.random.Generator) -> Integers:
    """Owners by a table ``[clients, C]`` of how many rows of each class a client holds; which rows
    is random.
    """
    owner = np.empty(len(division.y), dtype=np.int64)
    for c in range(table.shape[1]):
        rows = rng.permutation(np.flatnonzero(division.y == c))
        owner[rows] = np.repeat(np.arange(len(table)), table[:, c])
    return owner


def _even(total: int, parts: int) -> Integers:
    """Whole sizes equal to within one."""
    sizes = np.full(parts, total // parts, dtype=np.int64)
    sizes[: total % parts] += 1
    return sizes


def _repaired(owner: Integers, division: Division, rng: np.random.Generator) -> Integers:
    """Move random rows, one at a time, from whichever client is the largest to those below the
    minimum size.
    """
    sizes = np.bincount(owner, minlength=division.clients).tolist()
    least = division.spec.min_size
    poor = [client for client, size in enumerate(sizes) if size < least]
    largest = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    held: dict[int, list[int]] = {}
    for client in poor:
        for _ in range(least - sizes[client]):
            # the largest holds more than min_size: there are enough rows for all, and this client
            # has too few
            size, donor = largest[0]
            if donor not in held:
                held[donor] = rng.permutation(np.flatnonzero(owner == donor)).tolist()
            owner[held[donor].pop()] = client
            heapq.heapreplace(largest, (size + 1, donor))
    return owner


def check(division: Division) -> None:
    """Refuse data that a scheme cannot divide so."""
    counts = division.counts
    clients = division.clients
    spec = division.spec
    classes = int(
        np.count_nonzero(counts)
    )  # where groups are divided, a class may be the label of none
    if spec.scheme == "disjoint":
        rarest = int(np.where(counts, counts, len(division.y)).argmin())
        if clients > classes:
            what = f"{clients} clients cannot have disjoint labels with {classes} classes"
            raise UserError("clients", what, f"give at most {classes} clients")
        if counts[rarest] < spec.min_size:
            what = (
                f"class {rarest} has {counts[rarest]} rows, fewer than {spec.min_size} "
                "(partition.min_size)"
            )
            raise UserError("partition.min_size", what, f"give at most {counts[rarest]}")
    elif spec.scheme == "shards":
        fewest = -(-classes // clients)
        most = min(classes, int(np.minimum(counts, clients).sum()) // clients)
        if not fewest <= spec.labels <= most:
            what = (
                f"{clients} clients × {spec.labels} labels = {clients * spec.labels} shards "
                f"do not fit the sizes of {classes} classes"
            )
            if fewest <= most:
                hint = f"give at least {fewest} and at most {most} labels"
            else:
                hint = "give fewer clients"
            raise UserError("partition.labels", what, hint)
    elif spec.column is not None:
        _values_fit(division)


def _values_fit(division: Division) -> None:
    """The column has a value for every client, or no fewer clients than values; and every client
    the minimum size.
    """
    name = str(division.spec.column)
    clients = division.clients
    least = division.spec.min_size
    values, counts = column_values(division.columns, name)
    if len(values) > clients or (division.spec.scheme == "column" and len(values) < clients):
        what = f"column '{name}' has {len(values)} values, so {len(values)} clients, not {clients}"
        raise UserError("clients", what, f"give clients: {len(values)}")
    own = _clients_of(counts, clients)
    few = int(np.argmin(counts / own))
    if counts[few] < own[few] * least:
        what = (
            f"value '{values[few]}' of column '{name}' has {counts[few]} rows for {own[few]} "
            f"clients of {least} rows at least"
        )
        if own[few] > 1:
            hint = "give fewer clients"
        else:
            hint = f"give min_size: {counts[few]} or less"
        raise UserError("clients" if own[few] > 1 else "partition.min_size", what, hint)


def column_values(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[NDArray[Any], Integers]:
    """A column's values in sorted order, and how many rows have each."""
    if name not in columns:
        what = f"the data set has no column '{name}' with a value for every row"
        raise UserError("partition.column", what, nearest(name, columns))
    if missing := int(np.count_nonzero(lacking(columns[name]))):
        raise UserError(
            "partition.column",
            f"column '{name}' has no value in {missing} training rows",
            "give every row one",
        )
    return np.unique(columns[name], return_counts=True)
