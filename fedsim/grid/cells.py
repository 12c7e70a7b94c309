"""A grid's points: every algorithm with all its parameters, and every cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import BaseModel, ValidationError

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError, at, nearest
from fedsim.grid.complaints import translated
from fedsim.grid.models import Cell, Grid, epsilon_text
from fedsim.grid.places import Loc
from fedsim.methods.registry import lookup
from fedsim.methods.source_hash import place_of, source_hash
from fedsim.partition import check_partition


@dataclass(frozen=True)
class Variant:
    """An algorithm with all parameters: one entry of ``algorithms`` at one point of ``scan``.

    Attributes:
        entry: the position in ``algorithms``.
        label: what tables and curves call it.
        name: the algorithm's name as the grid gives it.
        identity: which class it is, see :func:`fedsim.methods.source_hash.place_of`.
        source: hash of its code and the harness's.
        params: all its parameters, defaults included.
        private: whether an epsilon has a meaning for it.
    """

    entry: int
    label: str
    name: str
    identity: str
    source: str
    params: dict[str, Any]
    private: bool


def expand(grid: Grid, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning makes one cell per
    partition, any other makes one per epsilon.

    Args:
        grid: from ``load_grid``.
        data: the embeddings of every ``grid.dataset`` by ``DatasetSpec.key``.

    Raises:
        UserError: the data do not allow so many clients, two data sets are the same, or an algorithm's entry is wrong.
    """
    _check_data(grid, data)
    return tuple(
        _cell(grid, variant, spec, data[spec.key].fingerprint, alpha, clients, epsilon, seed)
        for spec, alpha, clients, seed, variant in product(grid.dataset, grid.alpha, grid.clients, grid.seeds, variants(grid))
        for epsilon in (grid.epsilon if variant.private else (None,))
    )


def _check_data(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    first: dict[str, int] = {}
    for i, spec in enumerate(grid.dataset):
        embeddings = data[spec.key]
        same = first.setdefault(embeddings.fingerprint, i)
        if same != i:
            raise UserError(grid.place("dataset", i), f"has the same content as dataset[{same}]", "remove one")
        for j, clients in enumerate(grid.clients):
            with at(grid_place(grid, i, j)):
                check_partition(embeddings.y_train, spec=grid.partition, clients=clients, columns=embeddings.columns)


def grid_place(grid: Grid, dataset: int, clients: int) -> Callable[[str], str]:
    """How an error of a partition names the grid's keys, for these positions on the axes."""

    def place(key: str) -> str:
        of = f" with data set '{grid.dataset[dataset].display}'" if len(grid.dataset) > 1 else ""
        return (grid.place("clients", clients) if key == "clients" else grid.place(*key.split("."))) + of

    return place


def _cell(
    grid: Grid,
    variant: Variant,
    spec: DatasetSpec,
    content: str,
    alpha: float,
    clients: int,
    epsilon: float | None,
    seed: int,
) -> Cell:
    scheme = grid.partition.model_dump(mode="json", exclude_none=True) | ({"alpha": alpha} if grid.partition.uses_alpha else {})
    # without an epsilon there is no budget to protect a unit with
    noise = grid.privacy.noise if variant.private else "seeded"
    budget = [epsilon_text(epsilon), grid.delta, grid.unit, grid.trust, noise] if variant.private else None
    result_of = {
        "algorithm": variant.identity,
        "params": variant.params,
        "dataset": content,
        "partition": scheme,
        "clients": clients,
        "budget": budget,
        "seed": seed,
        "evaluation": grid.evaluation.model_dump(mode="json", exclude_none=True),
        "source": variant.source,
    }
    canonical = json.dumps(result_of, sort_keys=True, separators=(",", ":"))
    return Cell(
        cell_id=hashlib.sha256(canonical.encode()).hexdigest()[:16],
        source=variant.source,
        label=variant.label,
        algorithm=variant.name,
        params=variant.params,
        dataset=spec,
        dataset_hash=content,
        partition=grid.partition,
        alpha=alpha,
        clients=clients,
        epsilon=epsilon,
        delta=grid.delta,
        unit=grid.unit,
        trust=grid.trust,
        noise=noise,
        seed=seed,
        evaluation=grid.evaluation,
    )


def variants(grid: Grid) -> list[Variant]:
    """Every algorithm that is not refused at every point of the scan that concerns it, parameters validated by its own model.

    Raises:
        UserError: an algorithm is unknown, its parameters do not do, or two are the same.
    """
    classes = {
        i: lookup(entry.name, grid.place("algorithms", i, "name")) for i, entry in enumerate(grid.algorithms) if i not in grid.refused
    }
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    for parameter in grid.scan:
        if parameter not in known and not grid.refused:
            what = f"no algorithm of the grid has the parameter '{parameter}'"
            raise UserError(grid.place("scan", parameter), what, nearest(parameter, known))
    found: list[Variant] = []
    for i, cls in classes.items():
        entry = grid.algorithms[i]
        axes = [name for name in grid.scan if name in cls.Params.model_fields]
        if both := next((name for name in axes if name in entry.params), None):
            raise UserError(grid.place("scan", both), f"algorithms[{i}].params gives '{both}' too", "remove one of them")
        for point in product(*(range(len(grid.scan[name])) for name in axes)):
            chosen = dict(zip(axes, point, strict=True))
            variant = Variant(
                entry=i,
                label=" ".join([entry.display, *(f"{name}={_spell(grid.scan[name][j])}" for name, j in chosen.items())]),
                name=entry.name,
                identity=place_of(cls),
                source=source_hash(cls),
                params=_resolved(grid, i, cls.Params, chosen),
                private=cls.private,
            )
            _check_apart(grid, variant, found)
            found.append(variant)
    return found


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _resolved(grid: Grid, i: int, params: type[BaseModel], chosen: Mapping[str, int]) -> dict[str, Any]:
    def place(loc: Loc) -> str:
        if loc and loc[0] in chosen:
            name = str(loc[0])
            return grid.place("scan", name, chosen[name], *loc[1:])
        return grid.place("algorithms", i, "params", *loc)

    given = grid.algorithms[i].params | {name: grid.scan[name][j] for name, j in chosen.items()}
    try:
        return params.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        raise translated(error, params, place) from error


def _check_apart(grid: Grid, new: Variant, others: Sequence[Variant]) -> None:
    for other in others:
        if (new.identity, new.params) == (other.identity, other.params):
            what = f"'{new.label}' is the same as '{other.label}' of algorithms[{other.entry}]"
            raise UserError(grid.place("algorithms", new.entry), what, "remove one")
        if new.label == other.label:
            what = f"'{new.label}' is also what algorithms[{other.entry}] is called"
            raise UserError(grid.place("algorithms", new.entry), what, "give one of them a label: of its own")
