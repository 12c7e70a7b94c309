"""Partition schemes: functions that decide which client holds which training example.

A scheme reads labels, columns, its parameters and one random stream. Its running time is bounded,
because nothing is drawn again until it fits. Data that a scheme cannot divide are refused, with the
name of the grid's key that has to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.spec import changed
from fedsim.data.split import Columns, Integers, lacking
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
_SCHEMES_OF_KEY = {
    "labels": ("shards",),
    "power": ("quantity",),
    "column": ("column", "column-dirichlet"),
    "strength": ("feature-shift",),
}
"""The schemes that take a key, for each key that not every scheme takes."""
_FromZeroToTen = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False, strict=True)]


class PartitionSpec(BaseModel):
    """How training examples are divided among clients.

    Attributes:
        scheme: the rule that decides which client holds an example.
        min_size: the fewest examples that a client may hold; if groups stay together, the fewest
            groups.
        together: a column, such as the patient; all examples with the same value stay with one
            client. It is set from the grid's unit if that is a column.
        labels: for ``shards``: how many labels each client holds.
        power: for ``quantity``: the client of rank r holds examples in proportion to
            ``r ** -power``.
        column: for ``column`` and ``column-dirichlet``: the data set's column by whose values
            examples are divided. Each value is one client, or has several clients of its own.
        strength: for ``feature-shift``: the size of each client's shift. At 0 there is none; at 10
            little but the client's own direction is left of an example.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    together: str | None = Field(default=None, min_length=1)
    labels: int = Field(default=2, ge=1, strict=True)
    power: _FromZeroToTen = 1.0
    column: str | None = Field(default=None, min_length=1)
    strength: _FromZeroToTen = 0.5

    @model_validator(mode="after")
    def _check_keys_of_scheme(self) -> Self:
        """Refuse keys of other schemes, and a scheme without the column that it needs."""
        for name in sorted(changed(self) & _SCHEMES_OF_KEY.keys()):
            schemes = _SCHEMES_OF_KEY[name]
            if self.scheme not in schemes:
                raise ValueError(
                    f"scheme '{self.scheme}' takes no {name}; remove it or give scheme: "
                    f"{' or '.join(schemes)}"
                )
        if self.scheme in _SCHEMES_OF_KEY["column"] and self.column is None:
            raise ValueError(
                f"scheme '{self.scheme}' needs the name of a column; give column: NAME"
            )
        return self

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return "dirichlet" in self.scheme

    @property
    def divided_things(self) -> str:
        """What messages call the things that the scheme divides: rows, or groups of rows."""
        if self.together is None:
            return "rows"
        return f"different values of {self.together}"

    @property
    def shifts(self) -> bool:
        """Whether each client sees its embeddings through a map of its own."""
        return self.scheme == "feature-shift"


RowNumbers = tuple[Integers, ...]
"""Numbers of training or test examples, or of groups: one array per client."""


@dataclass(frozen=True, eq=False)
class Division:
    """The task of dividing examples, or groups that stay together, among clients.

    Attributes:
        y: the label of each example or group, int64 ``[n]`` in 0 .. C-1.
        columns: further values of each example or group by column name, ``[n]`` each.
        clients: the number of clients.
        spec: the scheme and its parameters.
        alpha: the concentration of Dirichlet draws, above 0.
    """

    y: Integers
    columns: Columns
    clients: int
    spec: PartitionSpec
    alpha: float

    @property
    def counts(self) -> Integers:
        """The number of examples of each class, int64 ``[C]``."""
        return np.bincount(self.y)


Owner = Callable[[Division, Generator], Integers]
"""A scheme: a function that returns the number of the client of each example, int64 ``[n]``."""


def dirichlet(division: Division, rng: Generator) -> Integers:
    """Share out each class over clients by its own Dirichlet(alpha) draw.

    Source: Hsu, Qi and Brown 2019, arXiv 1909.06335. Clients below the minimum size then get
    examples from the largest clients.
    """
    counts = division.counts
    shares = dirichlet_shares(
        rng,
        division.alpha,
        len(counts),
        division.clients,
    )
    edges = np.cumsum(shares, axis=1)
    table = np.empty((division.clients, len(counts)), dtype=np.int64)
    for label, count in enumerate(counts):
        relative_edges = edges[label] / edges[label, -1]
        ends = np.rint(relative_edges * count).astype(np.int64)
        table[:, label] = np.diff(ends, prepend=0)
    owner = _owners_from_table(table, division, rng)
    return _top_up_small_clients(owner, division, rng)


def dirichlet_client(division: Division, rng: Generator) -> Integers:
    """Give clients of equal size a label mix each, drawn from Dirichlet(alpha).

    Source: arXiv 2102.02079. Clients choose in random order. Once a class has run out, the rest of
    a client's examples follow its mix over the remaining classes.
    """
    clients = division.clients
    left = division.counts.copy()
    mixes = dirichlet_shares(rng, division.alpha, clients, len(left))
    table = np.zeros((clients, len(left)), dtype=np.int64)
    sizes = _even_sizes(len(division.y), clients)
    for client in rng.permutation(clients):
        missing = sizes[client]
        # Each turn fills the client or empties a class that it wants: at most C + 1 turns.
        while missing:
            mix = np.where(left > 0, mixes[client], 0.0)
            if not (mix.sum() > 0):
                mix = left.astype(np.float64)
            drawn = rng.multinomial(missing, mix / mix.sum())
            taken = np.minimum(drawn, left)
            table[client] += taken
            left -= taken
            missing -= taken.sum()
    return _owners_from_table(table, division, rng)


def dirichlet_shares(
    rng: Generator,
    alpha: float,
    draws: int,
    size: int,
) -> NDArray[np.float64]:
    """Draw ``[draws, size]`` shares from the symmetric Dirichlet(alpha) over ``size`` parts.

    It works for any alpha > 0, however small, because it computes in logarithms:
    ``log Gamma(alpha) = log Gamma(alpha + 1) + log U / alpha`` does not underflow.
    """
    alpha = max(alpha, 1e-300)
    log_gamma = np.log(rng.standard_gamma(alpha + 1, (draws, size)))
    log_uniform = np.log1p(-rng.random((draws, size)))
    log_gamma = log_gamma + log_uniform / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def disjoint(division: Division, rng: Generator) -> Integers:
    """Give each class whole to one client, so that clients share no label.

    Classes come in random order; each goes to the client that has the fewest examples so far.
    """
    counts = division.counts
    holder = np.zeros(len(counts), dtype=np.int64)
    sizes = np.zeros(division.clients, dtype=np.int64)
    for label in rng.permutation(len(holder)):
        smallest = sizes.argmin()
        holder[label] = smallest
        sizes[smallest] += counts[label]
    return holder[division.y]


def shards(division: Division, rng: Generator) -> Integers:
    """Give every client exactly ``labels`` labels.

    After McMahan et al. 2017, arXiv 1602.05629, with shards that never mix labels. Classes are cut
    into shards, the larger classes into more; a client gets shards of different classes.

    Raises:
        UserError: a client stays below the minimum size.
    """
    labels = division.spec.labels
    counts = division.counts
    holders = _count_holders(counts, division.clients, labels)
    free = np.full(division.clients, labels)
    table = np.zeros((division.clients, len(holders)), dtype=np.int64)
    by_holders = np.argsort(-holders, kind="stable")
    for label in by_holders[: np.count_nonzero(holders)]:
        # The clients that still lack the most shards come first. So no class meets fewer free
        # clients than it needs (Gale-Ryser theorem).
        order = rng.permutation(division.clients)
        most_free = np.argsort(-free[order], kind="stable")
        chosen = order[most_free][: holders[label]]
        free[chosen] -= 1
        table[chosen, label] = _even_sizes(counts[label], holders[label])
    _fill_small_clients(table, division.spec)
    return _owners_from_table(table, division, rng)


def _count_holders(
    counts: Integers,
    clients: int,
    labels: int = 1,
) -> Integers:
    """Return how many clients hold each label, in proportion to its size, int64 ``[C]``.

    A label has at least one holder, and at most as many as it has examples or as there are
    clients. If groups are divided, a class may be the label of no group; then nobody holds it.

    Args:
        counts: the number of examples of each label: of each class, or of each value of a column.
        clients: the number of clients.
        labels: the number of labels that each client holds.
    """
    most = np.minimum(counts, clients)
    holders = np.minimum(counts, 1)
    further = clients * labels - holders.sum()
    for _ in range(further):
        # The next holder always goes to the label whose holders have the most examples each.
        share_sizes = counts / np.maximum(holders, 1)
        largest = np.where(holders < most, share_sizes, 0.0).argmax()
        holders[largest] += 1
    return holders


def _fill_small_clients(table: Integers, spec: PartitionSpec) -> None:
    """Move examples in ``table`` ``[clients, C]``, in place, until every client has the fewest.

    A client below the minimum size takes examples of its own labels from the largest holders of
    the label.

    Raises:
        UserError: the holders of its labels cannot spare enough.
    """
    min_size = spec.min_size
    for client in np.flatnonzero(table.sum(axis=1) < min_size):
        for label in np.flatnonzero(table[client]):
            _take_from_holders(table, client, label, min_size)
        size = table[client].sum()
        if size < min_size:
            problem = (
                f"scheme 'shards' leaves client {client} with {size} {spec.divided_things}, fewer "
                f"than {min_size}"
            )
            hint = "give a smaller min_size, fewer clients or more labels"
            raise UserError("partition.min_size", problem, hint)


def _take_from_holders(
    table: Integers,
    client: np.int64,
    label: np.int64,
    min_size: int,
) -> None:
    """Move spare examples of one label to ``client``; updates ``table`` in place."""
    counts = table[:, label]
    allowed = np.minimum(counts - 1, table.sum(axis=1) - min_size)
    spare = allowed.clip(min=0)
    for donor in np.argsort(-spare, kind="stable"):
        moved = min(spare[donor], min_size - table[client].sum())
        if moved <= 0:
            return
        counts[donor] -= moved
        counts[client] += moved


def iid(division: Division, rng: Generator) -> Integers:
    """Deal examples at random; client sizes are equal to within one."""
    return rng.permutation(np.arange(len(division.y)) % division.clients)


def quantity(division: Division, rng: Generator) -> Integers:
    """Deal labels at random to clients whose sizes follow a power law.

    The client of rank r holds the minimum size plus a part in proportion to ``r ** -power``.
    """
    clients = division.clients
    min_size = division.spec.min_size
    ranks = np.arange(1, clients + 1)
    weights = rng.permutation(ranks**-division.spec.power)
    extra = len(division.y) - clients * min_size
    exact = extra * weights / weights.sum()
    sizes: Integers = np.floor(exact).astype(np.int64)
    # The largest remainders take what rounding down has left over.
    leftover = extra - sizes.sum()
    by_remainder = np.argsort(sizes - exact, kind="stable")
    sizes[by_remainder[:leftover]] += 1
    return rng.permutation(np.repeat(np.arange(clients), min_size + sizes))


def column(division: Division, _: Generator) -> Integers:
    """Give each value of a column to a client of its own, in sorted order of the values."""
    values = division.columns[str(division.spec.column)]
    return np.unique(values, return_inverse=True)[1]


def column_dirichlet(division: Division, rng: Generator) -> Integers:
    """Share out the examples of each value of a column among clients of that value.

    Labels follow Dirichlet(alpha) draws. Each value has at least one client; the further clients
    go, one by one, to the value with the most examples per client. Clients are numbered in the
    sorted order of the values.
    """
    value_of = column(division, rng)
    owner = np.empty_like(value_of)
    first_client = 0
    clients_per_value = _count_holders(np.bincount(value_of), division.clients)
    for value, clients in enumerate(clients_per_value.tolist()):
        members = np.flatnonzero(value_of == value)
        _, labels = np.unique(division.y[members], return_inverse=True)
        within_value = replace(division, y=labels, clients=clients)
        owner[members] = first_client + dirichlet(within_value, rng)
        first_client += clients
    return owner


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
"""The function of each scheme, by the name that a grid gives it."""


def _owners_from_table(
    table: Integers,
    division: Division,
    rng: Generator,
) -> Integers:
    """Deal random examples so that client k holds ``table[k, c]`` examples of each class c.

    Args:
        table: counts ``[clients, C]``.
        division: the labels.
        rng: chooses the examples.

    Returns:
        The client of each example, int64 ``[n]``.
    """
    owner = np.empty(len(division.y), dtype=np.int64)
    clients = np.arange(len(table))
    for label in range(table.shape[1]):
        members = rng.permutation(np.flatnonzero(division.y == label))
        owner[members] = np.repeat(clients, table[:, label])
    return owner


def _even_sizes(total: int, parts: int) -> Integers:
    """Split ``total`` into ``parts`` whole sizes that are equal to within one."""
    return np.bincount(np.arange(total) % parts, minlength=parts)


def _top_up_small_clients(
    owner: Integers,
    division: Division,
    rng: Generator,
) -> Integers:
    """Move random examples, one at a time, from the largest client to those below the minimum.

    ``owner`` ``[n]`` is changed in place and returned.
    """
    sizes = np.bincount(owner, minlength=division.clients)
    shuffled: dict[np.int64, list[int]] = {}
    for client in np.flatnonzero(sizes < division.spec.min_size):
        # There are enough examples for all and this client has too few, so the largest client
        # holds more than the minimum.
        while sizes[client] < division.spec.min_size:
            donor = sizes.argmax()
            if donor not in shuffled:
                shuffled[donor] = rng.permutation(np.flatnonzero(owner == donor)).tolist()
            owner[shuffled[donor].pop()] = client
            sizes[donor] -= 1
            sizes[client] += 1
    return owner


def check(division: Division) -> None:
    """Refuse data that the scheme cannot divide, before anything is drawn.

    Raises:
        UserError: with the grid's key that has to change, and values that would fit.
    """
    spec = division.spec
    if spec.scheme == "disjoint":
        _check_disjoint(division)
    elif spec.scheme == "shards":
        _check_shards(division)
    elif spec.column is not None:
        _check_column(division)


def _check_disjoint(division: Division) -> None:
    """Refuse more clients than classes, and a class below the minimum size."""
    counts = division.counts
    clients = division.clients
    min_size = division.spec.min_size
    # If groups are divided, a class may be the label of no group.
    classes = np.count_nonzero(counts)
    if clients > classes:
        problem = f"{clients} clients cannot have disjoint labels with {classes} classes"
        raise UserError("clients", problem, f"give at most {classes} clients")
    rarest = np.where(counts, counts, len(division.y)).argmin()
    count = counts[rarest]
    if count < min_size:
        raise UserError(
            "partition.min_size",
            f"is {min_size}, but the number of {division.spec.divided_things} of class {rarest} is "
            f"{count}",
            f"give min_size: {count} at most",
        )


def _check_shards(division: Division) -> None:
    """Refuse a number of labels per client that cannot give each class to somebody."""
    counts = division.counts
    clients = division.clients
    labels = division.spec.labels
    classes = np.count_nonzero(counts)
    fewest = -(-classes // clients)
    most = min(classes, np.minimum(counts, clients).sum() // clients)
    if fewest <= labels <= most:
        return
    problem = (
        f"{clients} clients × {labels} labels = {clients * labels} shards "
        f"do not fit the sizes of {classes} classes"
    )
    if fewest <= most:
        hint = f"give at least {fewest} and at most {most} labels"
    else:
        hint = "give fewer clients"
    raise UserError("partition.labels", problem, hint)


def _check_column(division: Division) -> None:
    """Refuse a column without a value for every client, or with a value of too few examples."""
    name = str(division.spec.column)
    clients = division.clients
    min_size = division.spec.min_size
    values, counts = column_values(division.columns, name)
    too_many_clients = division.spec.scheme == "column" and len(values) < clients
    if len(values) > clients or too_many_clients:
        problem = (
            f"is {clients}, but scheme: {division.spec.scheme} needs one client for each of the "
            f"{len(values)} values of column '{name}'"
        )
        raise UserError("clients", problem, f"give clients: {len(values)}")
    holders_of_values = _count_holders(counts, clients)
    scarcest = np.argmin(counts / holders_of_values)
    count = counts[scarcest]
    holders = holders_of_values[scarcest]
    if count >= holders * min_size:
        return
    problem = (
        f"value '{values[scarcest]}' of column '{name}' has {count} {division.spec.divided_things} "
        f"for {holders} clients of {min_size} at least"
    )
    if holders > 1:
        raise UserError("clients", problem, "give fewer clients")
    raise UserError(
        "partition.min_size",
        problem,
        f"give min_size: {count} or less",
    )


def column_values(
    columns: Columns,
    name: str,
) -> tuple[NDArray[Any], Integers]:
    """Return a column's values in sorted order, and the number of examples that have each.

    Raises:
        UserError: there is no such column, or examples have no value in it.
    """
    return np.unique(
        complete_column(columns, name, "partition.column"),
        return_counts=True,
    )


def complete_column(columns: Columns, name: str, key: str) -> NDArray[Any]:
    """Return the values of a column that has one for every example, ``[n]``.

    Args:
        columns: values of each example by column name.
        name: the column.
        key: the grid's key that names the column, for the error.

    Raises:
        UserError: there is no such column, or examples have no value in it.
    """
    if name not in columns:
        hint = nearest(name, columns)
        if not columns:
            hint = "it has no columns at all: add this one to the data, with one value per row"
        raise UserError(key, f"the data set has no column '{name}'", hint)
    values = columns[name]
    missing = np.count_nonzero(lacking(values))
    if missing:
        raise UserError(
            key,
            f"{missing} rows have no value of '{name}'",
            "give every row one; give a row that stands alone its own value",
        )
    return values
