"""What a scheme is: how rows are divided among clients, and what it asks of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsim.tagged import KindParams

Integers = NDArray[np.int64]


class SchemeParams(KindParams):
    """A scheme's own parameters, which a grid spells beside the scheme's name; a scheme that has any derives a class."""

    @property
    def site_column(self) -> str | None:
        """The column whose value is a row's and so a client's site; None where clients have none."""
        return None


_Given = TypeVar("_Given", bound=SchemeParams)


@dataclass(frozen=True, eq=False)
class Division(Generic[_Given]):
    """What is to be divided, and how.

    Attributes:
        y: labels int64 ``[n]``, 0 .. C-1.
        columns: further values, ``[n]`` each.
        clients: how many.
        min_size: the fewest rows that a client may hold.
        given: the scheme's own parameters.
        alpha: concentration, > 0, of a scheme that uses one.
    """

    y: Integers
    columns: Mapping[str, NDArray[Any]]
    clients: int
    min_size: int
    given: _Given
    alpha: float = 1.0

    @property
    def counts(self) -> Integers:
        """Rows of each class, int64 ``[C]``."""
        return np.bincount(self.y)


Owner = Callable[[Division[Any], np.random.Generator], Integers]
"""The owner int64 ``[n]`` of every row; UserErrors name a grid's key (``partition.min_size``)."""
RowMap = Callable[[NDArray[np.float32], int, Any, int], NDArray[np.float32]]
"""What a client makes of rows ``[k, d]``: a function of rows, client, the scheme's parameters and the partition's seed."""


def _any_data(division: Division[Any]) -> None:
    """A scheme that no data of enough rows refuse."""


@dataclass(frozen=True)
class Scheme:
    """A way to divide rows among clients.

    Attributes:
        owner: the client of every row; bounded: nothing is drawn again until it fits.
        check: raises a UserError, with a grid's key as its place, where the data do not allow such a division.
        params: the parameters that are its own, with their defaults.
        uses_alpha: whether ``alpha`` can change the division.
        map_rows: what every client makes of its rows' values; None where they are as they are.
    """

    owner: Owner
    check: Callable[[Division[Any]], None] = _any_data
    params: type[SchemeParams] = SchemeParams
    uses_alpha: bool = False
    map_rows: RowMap | None = None


def own_test_rows(client: int, clients: int) -> slice:
    """The test rows that stand for a client: row i is client ``i mod clients``'s."""
    return slice(client, None, clients)


def dealt(table: Integers, division: Division[Any], rng: np.random.Generator) -> Integers:
    """Owners by a table ``[clients, C]`` of how many rows of each class a client holds; which rows is random."""
    owner = np.empty(len(division.y), dtype=np.int64)
    for c in range(table.shape[1]):
        rows = rng.permutation(np.flatnonzero(division.y == c))
        owner[rows] = np.repeat(np.arange(len(table)), table[:, c])
    return owner


def even(total: int, parts: int) -> Integers:
    """Whole sizes equal to within one."""
    sizes = np.full(parts, total // parts, dtype=np.int64)
    sizes[: total % parts] += 1
    return sizes
