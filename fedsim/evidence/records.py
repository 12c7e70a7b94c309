"""Checks whether the record of a training contradicts itself.

A record holds most facts of a training several times: in its cell, in the public facts that the
algorithm got (its task), in its plan and in its ledger. The id of the training is a hash of its
cell. So a record in which somebody edited one place contradicts itself. Whoever edits all places
and the hash makes another record, which only a new training can refute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedsim.grid.models import Cell, shown
from fedsim.json_lines import reasons
from fedsim.plugins.code_hash import harness_hash, places_of
from fedsim.results.records import TrainingRecord

if TYPE_CHECKING:
    from fedsim.methods.algorithm import Algorithm

_EQUAL_PLACES = (
    ("cell.unit", "task.unit", "plan.unit"),
    ("cell.trust", "task.trust", "plan.trust"),
    ("cell.clients", "task.clients"),
    ("cell.epsilon", "plan.epsilon_target"),
    ("cell.delta", "plan.delta"),
    ("plan.accountant", "ledger.accountant"),
    ("training_id", "cell.training_id"),
)
"""The places of a record that must hold the same value, by the path of their keys."""
_IN_THE_ID = (
    "algorithm, params, dataset_hash, public_hash, partition, alpha, clients, epsilon, delta, "
    "unit, unit_column, trust, noise, seed, tuning, evaluation (unseen, probe_c, and personal "
    "if it is held-out), source"
)
"""The keys of a cell that :func:`fedsim.grid.cells.training_id_of` reads."""


def contradictions(
    line: TrainingRecord,
    cls: type[Algorithm],
    evaluated_by: str | None,
) -> Iterator[str]:
    """Yield a sentence for each contradiction in the record of a training.

    Args:
        line: the record.
        cls: the class that its cell names.
        evaluated_by: the hash of the code that evaluated the cell; None if it was not evaluated.
    """
    for places in _EQUAL_PLACES:
        # External samples have neither a plan nor a ledger, so these places are left out.
        yield from _differing(
            {
                place: _value(line, place)
                for place in places
                if _value(line, place.partition(".")[0]) is not None
            }
        )
    try:
        cell = Cell.model_validate(line["cell"])
    except ValidationError as error:
        yield f"its cell cannot be read ({'; '.join(reasons(error))})"
        return
    data_set = shown(cell.dataset, cell.evaluation.unseen)
    # The record also holds these facts, which follow from its cell.
    for name, value, place in (
        ("cell.evaluation.probe_c", cell.evaluation.real_c, "task.probe_c"),
        ("cell.alpha", cell.concentration, "alpha"),
        ("cell.dataset", data_set, "dataset"),
    ):
        yield from _differing({name: value, place: _value(line, place)})
    yield from _group_contradictions(cell, line)
    yield from _size_contradictions(cell, line)
    if (cell.public is None) != (cell.public_hash is None):
        yield "one of cell.public and cell.public_hash is missing"
    if line["training_id"] not in _ids(cell, cls, evaluated_by):
        yield (
            "its training_id is not the hash of its cell, so one of these is not what it was "
            f"when it trained: {_IN_THE_ID}"
        )


def _group_contradictions(cell: Cell, line: TrainingRecord) -> Iterator[str]:
    """Yield a sentence for each value of groups that is missing, or that another unit has.

    The column of a group unit must also be the one that the partition keeps together.
    """
    column = cell.unit_column
    groups = line.get("train_groups")
    for name, value in (("cell.unit_column", column), ("train_groups", groups)):
        if (cell.unit == "group") != (value is not None):
            yield f"cell.unit is {cell.unit!r} and {name} {value!r}"
    if column is not None:
        together = cell.partition.together
        yield from _differing({"cell.unit_column": column, "cell.partition.together": together})


def _size_contradictions(cell: Cell, line: TrainingRecord) -> Iterator[str]:
    """Yield a sentence if the public size does not follow from the number of training units."""
    from fedsim.grid.cells import public_size  # late: it imports torch

    counts = {
        "example": line.get("train_rows"),
        "group": line.get("train_groups"),
        "client": cell.clients,
    }
    units = counts[cell.unit]
    size = _value(line, "task.public_size")
    if units and size not in (None, public_size(units)):
        yield f"task.public_size is {size} and that of {units} units is {public_size(units)}"


def _ids(
    cell: Cell,
    cls: type[Algorithm],
    evaluated_by: str | None,
) -> set[str]:
    """Return the ids that a training of this cell may have.

    There are several, because a record names neither the working folder of its bench nor the code
    that scored the trainings of a search. That code may be the code that evaluated the cell, or the
    code that is installed here.
    """
    from fedsim.grid.cells import training_id_of  # late: it imports torch

    evaluation_codes = {harness_hash("evaluation"), evaluated_by or ""}
    return {
        training_id_of(cell, place, code) for place in places_of(cls) for code in evaluation_codes
    }


def _differing(values: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each value that differs from the first.

    Args:
        values: the values by the names of their places.
    """
    places = iter(values)
    first = next(places, "")
    for place in places:
        if values[place] != values[first]:
            yield f"{first} is {values[first]!r} and {place} {values[place]!r}"


def _value(line: TrainingRecord, path: str) -> Any:
    """Return the value of a record at a path of keys joined by dots; None if a part is missing."""
    value: Any = line
    for key in path.split("."):
        value = (value or {}).get(key)
    return value
