"""Results as pandas frames: a column for every field and every parameter, whole numbers as whole numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsim.evaluation.measures import MEASURES
from fedsim.results.rows import Row

if TYPE_CHECKING:
    import pandas as pd

_SPREAD = ("params", "evaluation")
"""Mappings of a row that become a column a key, ``params.latent``."""
_PLACE = ("cell_id", "label", "dataset", "alpha", "clients", "epsilon_target", "seed")
"""What places a cell's rounds, clients and audits in the grid."""
_NUMBERS = dict.fromkeys(MEASURES, "float64") | {
    name: "float64" if field.annotation == float | None else "Int64"
    for name, field in Row.model_fields.items()
    if field.annotation in (float | None, int | None)
}


def frame_of_rows(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a cell, a column for every field of :class:`Row`; keys of ``params`` and ``evaluation`` are columns such as ``params.latent``.

    What a row does not have is missing: NaN among floats, ``<NA>`` among whole numbers, None elsewhere.
    """
    return frame_of([row.model_dump() for row in rows], Row.columns())


def frame_of_cells(records: Iterable[Mapping[str, Any]], rows: Sequence[Row]) -> pd.DataFrame:
    """Records of cells, by ``cell_id``, with what places each cell in the grid before their own columns."""
    places = {row.cell_id: {name: getattr(row, name) for name in _PLACE} for row in rows}
    return frame_of([{**places.get(record["cell_id"], {}), **record} for record in records], _PLACE)


def frame_of(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Records as a frame: first ``columns``, which are there without records too, then further keys as they come."""
    import pandas as pd

    names: dict[str, list[str]] = {name: [] if name in _SPREAD else [name] for name in columns}
    flat = [{column: inner for name, value in record.items() for column, inner in _spread(name, value)} for record in records]
    for record in records:
        for name, value in record.items():
            own = names.setdefault(name, [])
            own += [column for column, _ in _spread(name, value) if column not in own]
    values = {column: [record.get(column) for record in flat] for own in names.values() for column in own}
    return pd.DataFrame({column: pd.Series(held, dtype=_dtype(column, held)) for column, held in values.items()})


def _spread(name: str, value: Any) -> list[tuple[str, Any]]:
    return [(f"{name}.{key}", inner) for key, inner in (value or {}).items()] if name in _SPREAD else [(name, value)]


def _dtype(column: str, values: Sequence[Any]) -> str | None:
    """By the values, where they are numbers; a number's column in which all are missing is one still. None: pandas decides."""
    there = [value for value in values if value is not None]
    kinds, whole = {type(value) for value in there}, len(there) == len(values)
    if not there:
        return _NUMBERS.get(column, "object")
    if kinds == {bool}:
        return "bool" if whole else "boolean"
    if kinds == {int} and max(map(abs, there)) < 2**63:
        return "int64" if whole else "Int64"
    return "float64" if kinds <= {int, float} else None if kinds == {str} else "object"
