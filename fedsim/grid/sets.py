"""The data sets of a grid: loaded, without the sites that take no part, and as each partition's clients see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings, PublicRows
from fedsim.data.sources.load import load_public, opened
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError, at, nearest
from fedsim.grid.models import Cell, Evaluation, Grid, data_key
from fedsim.partition import Partition, as_seen, check_partition, make_partition
from fedsim.partition.groups import TOGETHER_KEY, check_split
from fedsim.partition.schemes import column_values


def _silent(text: str) -> None:
    pass


def loaded(grid: Grid, tell: Callable[[str], None] = _silent) -> dict[str, Embeddings]:
    """The grid's data sets by key. What labels and columns can refuse is refused before any image is decoded."""
    sets, data = {}, {}
    for spec in grid.sets:
        tell(f"reading {spec.display}")
        with at(grid.place_of(spec)):
            sets[spec.key] = opened(spec)
    if not any(spec.skip_bad for spec in grid.sets):  # else partitions depend on which images are bad
        check_partitions(grid, without_unseen(grid, {key: held.labelled() for key, held in sets.items()}))
    for spec in grid.sets:
        with at(grid.place_of(spec)):
            data[spec.key] = sets.pop(spec.key).embedded()  # rows as they were read need no memory beside those of unit norm
    return data if grid.public is None else _with_public(grid, data, tell)


def _with_public(grid: Grid, data: Mapping[str, Embeddings], tell: Callable[[str], None]) -> dict[str, Embeddings]:
    """The data sets by key, each with the grid's public rows beside it."""
    held: dict[str, PublicRows] = {}
    both = {}
    for spec in grid.sets:
        public, rows = grid.public_beside(spec), data[spec.key]
        assert public is not None
        with at(grid.place("public")):
            if public.key not in held:
                tell(f"reading {public.display}")
                held[public.key] = load_public(public)
            beside = held[public.key]
            if beside.x.shape[1] != rows.dim:
                what = f"'{public.display}' has rows of {beside.x.shape[1]} dimensions, data set '{spec.display}' of {rows.dim}"
                raise UserError("", what, "give public rows that the same encoder embeds")
            for part, private in (("training", rows.x_train), ("test", rows.x_test)):
                beside.check_apart(private, part, spec.display)
        both[spec.key] = replace(rows, public=beside)
    return both


def evaluations(grid: Grid, spec: DatasetSpec, columns: Mapping[str, NDArray[Any]]) -> tuple[Evaluation, ...]:
    """The grid's evaluation, once for every site that it leaves out of training."""
    asked = grid.evaluation.unseen
    if asked is None:
        return (grid.evaluation,)
    where, column = grid.place("evaluation", "unseen"), grid.partition.column
    if column is None:
        raise UserError(where, f"scheme '{grid.partition.scheme}' has no sites", "give partition: {scheme: column, column: NAME}")
    with at(lambda key: grid.place(*key.split("."))):
        sites = column_values(columns, column)[0].astype(np.str_).tolist()
    if asked != "each" and asked not in sites:
        raise UserError(where, f"column '{column}' of '{spec.display}' has no value '{asked}'", nearest(asked, [*sites, "each"]))
    return tuple(grid.evaluation.model_copy(update={"unseen": site}) for site in (sites if asked == "each" else [asked]))


def without_unseen(grid: Grid, data: Mapping[str, Embeddings]) -> dict[str, Embeddings]:
    """The data sets by key, and what is left of each without a site that takes no part, by :func:`fedsim.grid.models.data_key`."""
    views = dict(data)
    for spec in grid.sets:
        for evaluation in evaluations(grid, spec, data[spec.key].columns):
            if evaluation.unseen is not None:
                with at(grid.place("evaluation", "unseen")):
                    column = str(grid.partition.column)
                    views[data_key(spec, evaluation)] = data[spec.key].unseen(column, evaluation.unseen)
    return views


def check_partitions(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    """Check what partitions ask of labels, columns and split of what :func:`without_unseen` gave; rows are not looked at."""
    for spec in grid.sets:
        for (j, clients), evaluation in product(enumerate(grid.clients), evaluations(grid, spec, data[spec.key].columns)):
            rows = data[data_key(spec, evaluation)]
            with at(grid_place(grid, spec, j, evaluation.unseen)):
                check_partition(rows.y_train, spec=grid.division, clients=clients, columns=rows.columns)
                if grid.division.together is not None:
                    check_split(grid.division.together, rows.columns, rows.test_columns)


def grid_place(grid: Grid, dataset: DatasetSpec, clients: int, unseen: str | None = None) -> Callable[[str], str]:
    """How an error of a partition names the grid's keys, for this data set, a position on ``clients`` and the site that is left out."""

    def place(key: str) -> str:
        of = f" with data set '{dataset.display}'" if len(grid.sets) > 1 else ""
        of += f" with '{unseen}' unseen" if unseen else ""
        if key == TOGETHER_KEY and grid.partition.together is None:
            return grid.place("unit") + of
        return (grid.place("clients", clients) if key == "clients" else grid.place(*key.split("."))) + of

    return place


def partition_of(cell: Cell, data: Embeddings) -> Partition:
    """A cell's partition of its data set."""
    return make_partition(data.y_train, spec=cell.partition, alpha=cell.alpha, clients=cell.clients, seed=cell.seed, columns=data.columns)


def client_views(
    cells: Sequence[Cell], partitions: Sequence[Partition], data: Mapping[str, Embeddings]
) -> tuple[Mapping[str, Embeddings], tuple[str, ...]]:
    """The data by key, with what each partition makes of them where clients see values of their own; and the key that each cell reads."""
    views, keys = dict(data), []
    for cell, partition in zip(cells, partitions, strict=True):
        key = cell.data_key
        if cell.partition.shifts:
            key = f"{key} {partition.fingerprint}"
            if key not in views:
                views[key] = as_seen(data[cell.data_key], partition, cell.partition, cell.seed)
        keys.append(key)
    return views, tuple(keys)
