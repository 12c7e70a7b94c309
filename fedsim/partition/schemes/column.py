"""A client for every value of a column."""

from __future__ import annotations

import numpy as np
from pydantic import Field, field_validator

from fedsim.errors import UserError, nearest
from fedsim.partition.schemes.scheme import Division, Integers, Scheme, SchemeParams


class ColumnParams(SchemeParams):
    """Parameters of scheme ``column``.

    Attributes:
        column: the data set's column whose values are the clients.
    """

    column: str | None = Field(default=None, validate_default=True)

    @field_validator("column")
    @classmethod
    def _needed(cls, column: str | None) -> str | None:
        if column is None:
            raise ValueError("scheme 'column' needs the name of a column; give column: NAME")
        return column


def column(division: Division[ColumnParams], _: np.random.Generator) -> Integers:
    """The clients are the values of a column, in sorted order."""
    owner = np.unique(division.columns[str(division.given.column)], return_inverse=True)[1]
    return owner.astype(np.int64)


def values_are_clients(division: Division[ColumnParams]) -> None:
    """The column has a value for every client, with the minimum size."""
    name, columns, clients, min_size = str(division.given.column), division.columns, division.clients, division.min_size
    if name not in columns:
        raise UserError("partition.column", f"the data set has no column '{name}'", nearest(name, columns))
    values, counts = np.unique(columns[name], return_counts=True)
    if len(values) != clients:
        what = f"column '{name}' has {len(values)} values, so {len(values)} clients, not {clients}"
        raise UserError("clients", what, f"give clients: {len(values)}")
    if counts.min() < min_size:
        what = f"value '{values[counts.argmin()]}' of column '{name}' has {counts.min()} rows, fewer than {min_size}"
        raise UserError("partition.min_size", what, f"give at most {counts.min()}")


COLUMN = Scheme(column, values_are_clients, ColumnParams)
