"""A grid's points: its cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.public import PublicRows
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError, at, nearest
from fedsim.grid.models import Cell, Evaluation, Grid, data_key
from fedsim.grid.resolve import Resolved, Variant
from fedsim.methods.messages import Task
from fedsim.partition import check_partition
from fedsim.partition.groups import TOGETHER_KEY, check_split
from fedsim.partition.schemes import column_values
from fedsim.plugins.code_hash import evaluation_hash
from fedsim.plugins.registry import lookup
from fedsim.words import json_number


def expand(resolved: Resolved, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning makes one cell per
    partition, any other makes one per epsilon.

    Args:
        resolved: the grid with its algorithms.
        data: what :func:`without_unseen` gave.

    Raises:
        UserError: the data do not allow so many clients, or two data sets are the same.
    """
    grid = resolved.grid
    check_partitions(grid, data)
    _check_apart(grid, data)
    return tuple(
        _cell(grid, variant, spec, data[spec.key], alpha, clients, epsilon, seed, evaluation)
        for spec in grid.sets
        for alpha, clients, seed, evaluation in product(
            grid.alpha, grid.clients, grid.seeds, evaluations(grid, spec, data[spec.key].columns)
        )
        for variant in resolved.variants
        for epsilon in (grid.epsilon if variant.private else (None,))
    )


def evaluations(grid: Grid, spec: DatasetSpec, columns: Mapping[str, NDArray[Any]]) -> tuple[Evaluation, ...]:
    """The grid's evaluation, once for every site that it leaves out of training.

    Raises:
        UserError: the scheme has no sites, or none of that name.
    """
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
    """The data sets by key, and what is left of each without a site that takes no part, by :func:`fedsim.grid.models.data_key`.

    Raises:
        UserError: a site cannot be left out.
    """
    views = dict(data)
    for spec in grid.sets:
        for evaluation in evaluations(grid, spec, data[spec.key].columns):
            if evaluation.unseen is not None:
                with at(grid.place("evaluation", "unseen")):
                    column = str(grid.partition.column)
                    views[data_key(spec, evaluation)] = data[spec.key].unseen(column, evaluation.unseen)
    return views


def check_partitions(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    """Check what partitions ask of labels, columns and split; rows are not looked at.

    Args:
        grid: the grid.
        data: what :func:`without_unseen` gave.

    Raises:
        UserError: the data do not allow so many clients, or a group is on both sides of the split.
    """
    for spec in grid.sets:
        for (j, clients), evaluation in product(enumerate(grid.clients), evaluations(grid, spec, data[spec.key].columns)):
            rows = data[data_key(spec, evaluation)]
            with at(grid_place(grid, spec, j, evaluation.unseen)):
                check_partition(rows.y_train, spec=grid.division, clients=clients, columns=rows.columns)
                if grid.division.together is not None:
                    check_split(grid.division.together, rows.columns, rows.test_columns)


def _check_apart(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    first: dict[str, int] = {}
    for i, spec in enumerate(grid.sets):
        same = first.setdefault(data[spec.key].fingerprint, i)
        if same != i:
            raise UserError(grid.place_of(spec), f"has the same content as dataset[{grid.position(grid.sets[same])}]", "remove one")


def grid_place(grid: Grid, dataset: DatasetSpec, clients: int, unseen: str | None = None) -> Callable[[str], str]:
    """How an error of a partition names the grid's keys, for this data set, a position on ``clients`` and the site that is left out."""

    def place(key: str) -> str:
        of = f" with data set '{dataset.display}'" if len(grid.sets) > 1 else ""
        of += f" with '{unseen}' unseen" if unseen else ""
        if key == TOGETHER_KEY and grid.partition.together is None:
            return grid.place("unit") + of
        return (grid.place("clients", clients) if key == "clients" else grid.place(*key.split("."))) + of

    return place


def _cell(
    grid: Grid,
    variant: Variant,
    spec: DatasetSpec,
    data: Embeddings,
    alpha: float,
    clients: int,
    epsilon: float | None,
    seed: int,
    evaluation: Evaluation,
) -> Cell:
    content, public = data.fingerprint, public_for(grid, variant, data, clients)
    scheme = grid.division.model_dump(mode="json") | ({"alpha": alpha} if grid.partition.uses_alpha else {})
    # without an epsilon there is no budget to protect a unit with
    noise = grid.privacy.noise if variant.private else "seeded"
    budget = [json_number(epsilon), grid.delta, grid.model_dump(include={"unit"})["unit"], grid.trust, noise] if variant.private else None
    training = identity(
        {
            "algorithm": variant.identity,
            "params": variant.params,
            "dataset": content,
            "partition": scheme,
            "clients": clients,
            "budget": budget,
            "seed": seed,
            "unseen": evaluation.unseen,
            "probe_c": evaluation.real_c,  # a task holds it, so that an algorithm may use the evaluation's probe
            "source": variant.source,
            # scores of held-out rows decide what is kept, and so does the code that computes them
            **({"tuning": variant.tuning.model_dump(mode="json"), "code": evaluation_hash()} if variant.tuning else {}),
            **({} if public is None else {"public": public.fingerprint}),
        }
    )
    return Cell(
        cell_id=judged_id(training, evaluation),
        training_id=training,
        source=variant.source,
        label=variant.label,
        algorithm=variant.name,
        params=variant.params,
        dataset=spec,
        dataset_hash=content,
        public=None if public is None else public.name,
        public_hash=None if public is None else public.fingerprint,
        public_licence=None if public is None else public.licence,
        partition=grid.division,
        alpha=alpha,
        clients=clients,
        epsilon=epsilon,
        delta=grid.delta,
        unit=grid.unit_kind,
        unit_column=grid.unit_column,
        trust=grid.trust,
        noise=noise,
        seed=seed,
        evaluation=evaluation,
        tuning=variant.tuning,
    )


def public_for(grid: Grid, variant: Variant, data: Embeddings, clients: int) -> PublicRows | None:
    """The public rows beside the data, where the algorithm uses them with these parameters."""
    if data.public is None:
        return None
    cls = lookup(variant.name)
    task = Task(data.dim, data.classes, clients, grid.unit_kind, grid.trust, grid.evaluation.real_c, data.public)
    points = [{}] if variant.tuning is None else variant.tuning.points
    settings = (cls.Params.model_validate({**variant.params, **point}) for point in points)
    return data.public if any(cls(setting, task).uses_public() for setting in settings) else None


def judged_id(training_id: str, evaluation: Evaluation) -> str:
    """The id of a cell: of a training, judged by an evaluation and the code that is here."""
    asked = evaluation.model_dump(mode="json", exclude_none=True)
    return identity({"training": training_id, "evaluation": asked, "code": evaluation_hash()})


def identity(facts: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for equal facts, which are plain JSON values."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
