"""Clients by the values of a column: a client for every value, or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fedsim.data.split import lacking
from fedsim.errors import UserError, nearest
from fedsim.partition.schemes.dirichlet import dirichlet
from fedsim.partition.schemes.scheme import Division, Integers, Scheme, SchemeParams


class ColumnParams(SchemeParams):
    """Parameters of scheme ``column``.

    Attributes:
        column: the data set's column whose values are the clients.
    """

    scheme: ClassVar[str] = "column"
    column: str | None = Field(default=None, validate_default=True)

    @field_validator("column")
    @classmethod
    def _needed(cls, column: str | None) -> str | None:
        if column is None:
            raise ValueError(f"scheme '{cls.scheme}' needs the name of a column; give column: NAME")
        return column

    @property
    def site_column(self) -> str | None:
        """The column itself."""
        return self.column


class ColumnDirichletParams(ColumnParams):
    """Parameters of scheme ``column-dirichlet``.

    Attributes:
        column: the data set's column, each value of which has clients of its own.
    """

    scheme: ClassVar[str] = "column-dirichlet"


def column(division: Division[ColumnParams], _: np.random.Generator) -> Integers:
    """The clients are the values of a column, in sorted order."""
    owner = np.unique(division.columns[str(division.given.column)], return_inverse=True)[1]
    return owner.astype(np.int64)


def column_dirichlet(division: Division[ColumnParams], rng: np.random.Generator) -> Integers:
    """Every value's rows are shared out among clients of its own, their labels by Dirichlet(alpha) draws.

    Each value has a client; the further ones go, one by one, where there are the most rows a client. Clients stand in the order of
    the values.
    """
    place = column(division, rng)
    rows = np.bincount(place)
    clients = _clients_of(rows, division.clients)
    owner, first = np.empty_like(place), 0
    for value, count in enumerate(clients):
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


def column_values(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[NDArray[Any], Integers]:
    """A column's values in sorted order, and how many rows have each.

    Raises:
        UserError: there is no such column, or a row has no value; its place is a grid's key.
    """
    if name not in columns:
        what = f"the data set has no column '{name}' with a value for every row"
        raise UserError("partition.column", what, nearest(name, columns))
    if missing := int(np.count_nonzero(lacking(columns[name]))):
        raise UserError("partition.column", f"column '{name}' has no value in {missing} training rows", "give every row one")
    return np.unique(columns[name], return_counts=True)


def _values(division: Division[ColumnParams]) -> tuple[str, NDArray[Any], Integers]:
    """The column's name, its values in sorted order and their numbers of rows."""
    name = str(division.given.column)
    return name, *column_values(division.columns, name)


def values_have_clients(division: Division[ColumnParams]) -> None:
    """No fewer clients than the column has values, and none with fewer rows than the minimum size."""
    (name, values, counts), clients, min_size = _values(division), division.clients, division.min_size
    if len(values) > clients:
        raise UserError("clients", f"column '{name}' has {len(values)} values, more than {clients} clients", f"give clients: {len(values)}")
    own = _clients_of(counts, clients)
    few = int(np.argmin(counts / own))
    if counts[few] < own[few] * min_size:
        what = f"value '{values[few]}' of column '{name}' has {counts[few]} rows for {own[few]} clients of {min_size} rows at least"
        raise UserError("clients", what, "give fewer clients")


def values_are_clients(division: Division[ColumnParams]) -> None:
    """The column has a value for every client, with the minimum size."""
    (name, values, counts), clients, min_size = _values(division), division.clients, division.min_size
    if len(values) != clients:
        what = f"column '{name}' has {len(values)} values, so {len(values)} clients, not {clients}"
        raise UserError("clients", what, f"give clients: {len(values)}")
    if counts.min() < min_size:
        what = f"value '{values[counts.argmin()]}' of column '{name}' has {counts.min()} rows, fewer than {min_size}"
        raise UserError("partition.min_size", what, f"give at most {counts.min()}")


COLUMN = Scheme(column, values_are_clients, ColumnParams)
COLUMN_DIRICHLET = Scheme(column_dirichlet, values_have_clients, ColumnDirichletParams, uses_alpha=True)
