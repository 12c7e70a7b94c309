"""A grid's points: its cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import product

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError, at
from fedsim.grid.models import Cell, Grid
from fedsim.grid.resolve import Resolved, Variant
from fedsim.partition import check_partition
from fedsim.words import json_number


def expand(resolved: Resolved, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning makes one cell per
    partition, any other makes one per epsilon.

    Args:
        resolved: the grid with its algorithms.
        data: the embeddings of every ``grid.dataset`` by ``DatasetSpec.key``.

    Raises:
        UserError: the data do not allow so many clients, or two data sets are the same.
    """
    grid = resolved.grid
    _check_data(grid, data)
    return tuple(
        _cell(grid, variant, spec, data[spec.key].fingerprint, alpha, clients, epsilon, seed)
        for spec, alpha, clients, seed, variant in product(grid.dataset, grid.alpha, grid.clients, grid.seeds, resolved.variants)
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
    # ids have always held a strength, whatever the scheme
    scheme = {"strength": 0.0, **grid.partition.model_dump(mode="json")} | ({"alpha": alpha} if grid.partition.uses_alpha else {})
    # without an epsilon there is no budget to protect a unit with
    noise = grid.privacy.noise if variant.private else "seeded"
    budget = [json_number(epsilon), grid.delta, grid.unit, grid.trust, noise] if variant.private else None
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
