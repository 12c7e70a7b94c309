"""Holds data sets in memory: embeddings with labels, divided into training and test rows.

A data set is checked once, when it is made. Public rows belong to no unit of privacy, so whatever
is computed from them alone costs no privacy; a result that mixes in a private row is a release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic_core import CoreSchema, core_schema

from fedsim.data.split import TEST, TRAIN, VALIDATION, Columns, Integers, take_rows
from fedsim.errors import UserError

if TYPE_CHECKING:
    import torch

MORE_STAND_INS = 256
"""The number of made-up public rows beyond the number of dimensions.

No data set has these rows; they replace public ones in rehearsals, checks and audits.
"""


NUMBERS_AT_ONCE = 2**22
"""The largest size of a block of rows, in numbers; temporary arrays are as large as a block."""


def row_blocks(x: NDArray[Any]) -> Iterator[slice]:
    """Yield slices that divide the rows ``[n, d]`` into blocks, in order."""
    size = max(1, NUMBERS_AT_ONCE // max(1, x.shape[1]))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def unit_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row to L2 norm 1: ``x_i / ||x_i||``; zero rows stay zero.

    Args:
        x: finite rows ``[n, d]``, which are not changed.

    Returns:
        float32 ``[n, d]``; a row of the result depends on no other row.
    """
    # If rows are not contiguous, NumPy adds the numbers of a row in another order. Such an array is
    # computed as one block, so that blocks do not change its result.
    if not x.flags.c_contiguous:
        return _block_of_unit_norm(x)
    unit = np.empty_like(x, subok=False)
    for block in row_blocks(x):
        unit[block] = _block_of_unit_norm(x[block])
    return unit


def _block_of_unit_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    # Dividing by the largest entry first keeps the squares of huge and tiny rows inside float32.
    largest = np.maximum(
        x.max(axis=1, keepdims=True),
        -x.min(axis=1, keepdims=True),
    )
    unit: NDArray[np.float32] = np.divide(
        x,
        np.where(largest > 0, largest, 1).astype(np.float32),
    )
    norm = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    return np.divide(unit, np.where(norm > 0, norm, 1), out=unit)


def row_keys(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a number for every row ``[n, d]``; equal rows have equal numbers.

    It is a random combination of the bits of the row's values, so different rows have equal numbers
    by chance only.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(2**64, size=x.shape[1], dtype=np.uint64)
    keys = np.empty(len(x), np.uint64)
    for block in row_blocks(x):
        bits = _without_negative_zeros(x[block]).view(np.uint32)
        keys[block] = np.einsum("nd,d->n", bits.astype(np.uint64), weights)
    return keys


def _without_negative_zeros(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a contiguous copy in which -0 is 0, so that equal rows have equal bytes."""
    return np.ascontiguousarray(x) + np.float32(0)


def shared_rows(
    x: NDArray[np.float32],
    others: NDArray[np.float32],
    other_keys: NDArray[np.uint64],
) -> list[int]:
    """Return the positions of the rows ``[n, d]`` that are equal to a row of ``others`` ``[m, d]``.

    Only rows with equal keys are compared.

    Args:
        x: the rows.
        others: the other rows.
        other_keys: :func:`row_keys` of the other rows.
    """
    keys = row_keys(x)
    candidates = np.flatnonzero(np.isin(keys, other_keys))
    other_candidates = np.flatnonzero(np.isin(other_keys, keys[candidates]))
    contents = {_without_negative_zeros(others[row]).tobytes() for row in other_candidates}
    return [int(row) for row in candidates if _without_negative_zeros(x[row]).tobytes() in contents]


def _hash_arrays(arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """Return 16 hex digits that identify arrays and the text before each of them."""
    digest = hashlib.sha256()
    for head, array in arrays:
        content: Any = np.ascontiguousarray(array)  # a buffer, which NumPy's types do not say
        digest.update(head.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class PublicRows:
    """The public rows of a grid, prepared like the private ones.

    Attributes:
        x: float32 ``[n, d]``, of unit norm; read-only in a worker.
        y: int64 ``[n]``, labels in ``0 .. classes - 1`` of the public source, which are not those
            of the private data; None if the source has no labels.
        name: the name in tables.
        licence: the licence of the source, in words; None if it is not known.
    """

    x: NDArray[np.float32]
    y: Integers | None = None
    name: str = "public"
    licence: str | None = None

    @classmethod
    def made_up(cls, dim: int, classes: int) -> Self:
        """Return random labelled rows that belong to no data set, the same ones at every call.

        They replace the public rows of a grid in rehearsals, checks and audits.

        Args:
            dim: the number of dimensions, d.
            classes: the number of classes of the labels.
        """
        x = np.random.default_rng(0).standard_normal(
            (dim + MORE_STAND_INS, dim),
            dtype=np.float32,
        )
        return cls(
            unit_norm(x),
            np.arange(len(x), dtype=np.int64) % classes,
            "made up",
        )

    def rows(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return a copy of ``x`` as a tensor on a device."""
        import torch  # imported here because a report does not need it

        return torch.tensor(self.x, device=device)

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of rows and labels, without the name."""
        has_labels = self.y is not None
        arrays: list[tuple[str, Any]] = [(f"public {self.x.shape} {has_labels}\n", self.x)]
        if has_labels:
            arrays.append(("", self.y))
        return _hash_arrays(arrays)

    @cached_property
    def _keys(self) -> NDArray[np.uint64]:
        """The key of every row, computed once for all private data sets."""
        return row_keys(self.x)

    def beside(self, data: Embeddings) -> Embeddings:
        """Return the data set with these public rows beside it.

        Before that, it compares the public rows with the private ones. This only tells the user of
        a simulation about a mistake in the grid. No result and no release depends on it.

        Raises:
            UserError: the dimensions differ, or a private row is public too.
        """
        if self.x.shape[1] != data.dim:
            problem = (
                f"'{self.name}' has rows of {self.x.shape[1]} dimensions, data set "
                f"'{data.name}' of {data.dim}"
            )
            raise UserError(
                "",
                problem,
                "give public rows that the same encoder embeds",
            )
        for split_name, x in (("training", data.x_train), ("test", data.x_test)):
            shared = shared_rows(x, self.x, self._keys)
            if shared:
                problem = (
                    f"{len(shared)} {split_name} rows of '{data.name}' are public too, the first "
                    f"is row {shared[0]} (counted from 0)"
                )
                raise UserError(
                    "",
                    problem,
                    "give public rows that are in no private data set",
                )
        return replace(data, public=self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.is_instance_schema(cls)  # no grid file can hold arrays


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A labelled data set of embeddings.

    Attributes:
        name: the name in tables and curves.
        x_train: float32 ``[n, d]``, the training rows, which are divided among the clients.
        y_train: int64 ``[n]``, labels in ``0 .. classes - 1``.
        x_test: float32 ``[m, d]``, the rows that every algorithm is evaluated on.
        y_test: int64 ``[m]``, the labels of the test rows.
        classes: the number of classes, C.
        columns: further values of the training rows (site, image type), ``[n]`` each.
        class_names: the names of the classes; empty if they are not known.
        test_columns: the same columns of the test rows, ``[m]`` each.
        public: the grid's public rows, which travel with the data set but are not part of it.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: Integers
    x_test: NDArray[np.float32]
    y_test: Integers
    classes: int
    columns: Columns = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    test_columns: Columns = field(default_factory=dict)
    public: PublicRows | None = None

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x: NDArray[Any],
        y: NDArray[Any],
        split: NDArray[Any],
        columns: Columns | None = None,
        class_names: NDArray[Any] | Sequence[str] | None = None,
    ) -> Embeddings:
        """Check raw arrays and divide them into training and test rows.

        Args:
            name: the name of the data set.
            x: features ``[n, d]`` of any real dtype.
            y: labels ``[n]`` in ``0 .. C-1``; every class needs a training row.
            split: ``[n]``, 0 = train, 1 = validation (ignored), 2 = test.
            columns: further values per row, ``[n]`` each.
            class_names: one name per class, ``[C]``.

        Raises:
            UserError: an array has a wrong shape, type or value; the message names it.
        """
        features = _checked_features(x)
        columns = columns or {}
        labels = _integers(y, "y", len(features))
        parts = _integers(split, "split", len(features))
        _check_split(parts)
        _check_columns(columns, len(features))
        train = parts == TRAIN
        test = parts == TEST
        classes = _count_classes(labels, train, test)
        return cls(
            name=name,
            x_train=_chosen_features(features, train),
            y_train=labels[train],
            x_test=_chosen_features(features, test),
            y_test=labels[test],
            classes=classes,
            columns=take_rows(columns, train),
            class_names=_class_names(class_names, classes),
            test_columns=take_rows(columns, test),
        )

    def others(self, column: str, value: str) -> NDArray[np.bool_]:
        """Return which training rows ``[n]`` have another value in a column than ``value``."""
        return np.asarray(self.columns[column].astype(np.str_) != value)

    def unseen(self, column: str, value: str) -> Embeddings:
        """Return the data set for a test on one site that no training row comes from.

        Training rows with ``value`` in the column are removed, and so are test rows without it.

        Raises:
            UserError: no test row has the value, or a class loses all its training rows.
        """
        test = self.test_columns[column].astype(np.str_) == value
        if not test.any():
            raise UserError(
                "",
                f"no test row has {column} '{value}'",
                f"name one of these: {', '.join(np.unique(self.test_columns[column]).astype(str))}",
            )
        without_site = self.trained_on(
            self.others(column, value),
            f"without {column} '{value}'",
        )
        return replace(
            without_site,
            x_test=self.x_test[test],
            y_test=self.y_test[test],
            test_columns=take_rows(self.test_columns, test),
        )

    def trained_on(self, rows: NDArray[Any], how: str = "") -> Embeddings:
        """Return the data set with only some of its training rows.

        Args:
            rows: the rows to keep, as a mask ``[n]`` or as positions; at least one of every class.
            how: how they were chosen, for the message.

        Raises:
            UserError: a class has no training row left.
        """
        missing = np.setdiff1d(range(self.classes), self.y_train[rows])
        if len(missing):
            raise UserError(
                "",
                f"{how} class '{self.names[missing[0]]}' has no training row",
                "leave the class out of the data",
            )
        return replace(
            self,
            x_train=self.x_train[rows],
            y_train=self.y_train[rows],
            columns=take_rows(self.columns, rows),
        )

    def without_training_rows(self) -> Embeddings:
        """Return the data set without its training rows and their columns.

        The test rows are copied, because they may be a part of the same memory as the training
        rows. The fingerprint covers only the rows that are left.
        """
        return replace(
            self,
            x_train=np.empty((0, self.dim), np.float32),
            y_train=np.empty(0, np.int64),
            x_test=self.x_test.copy(),
            columns={},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers if there are no names."""
        return self.class_names or tuple(map(str, range(self.classes)))

    @property
    def dim(self) -> int:
        """The number of features, d."""
        return int(self.x_train.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of rows, labels and columns.

        Names and public rows do not count.
        """
        fields = ("x_train", "y_train", "x_test", "y_test")
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in fields}
        for prefix, columns in (("column", self.columns), ("test column", self.test_columns)):
            arrays |= {f"{prefix} {key}": columns[key] for key in sorted(columns)}
        return _hash_arrays(
            (f"{key} {array.dtype.str} {array.shape}\n", array) for key, array in arrays.items()
        )


def untested(data: Embeddings, site: str | None = None) -> str | None:
    """Return a warning if the test rows lack classes; None if every class has a test row.

    Args:
        data: the data set.
        site: the site of all test rows, if they come from a single site.
    """
    missing = np.setdiff1d(range(data.classes), data.y_test)
    if len(missing) == 0:
        return None
    names = [data.names[label] for label in missing[:5]]
    if len(missing) > 5:
        names.append("...")
    if site:
        owner = f"{site} of {data.name}"
    else:
        owner = data.name
    return (
        f"{owner} has no test row of {len(missing)} of its {data.classes} classes "
        f"({', '.join(names)}): balanced accuracy is over the others"
    )


def _checked_features(x: NDArray[Any]) -> NDArray[Any]:
    """Return features ``[n, d]``; refuse other shapes and values that are not finite float32.

    They are read in blocks, so that a file that is mapped into memory is not copied.
    """
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(
            "",
            f"x has shape {list(x.shape)}",
            "give one row of features per example: [n, d]",
        )
    if x.dtype.kind not in "fiu":
        raise UserError(
            "",
            f"x has dtype {x.dtype}",
            "give real numbers, e.g. float32 or float16",
        )
    count = 0
    first = None
    for block in row_blocks(x):
        with np.errstate(over="ignore"):  # a float64 too large for float32 is reported below
            bad = ~np.isfinite(x[block].astype(np.float32, copy=False))
        if bad.any():
            count += int(bad.sum())
            if first is None:
                first = block.start + int(bad.any(axis=1).argmax())
    if count:
        problem = (
            "x has numbers that are NaN, infinite or too large for float32: "
            f"{count} in all, the first in row {first} (counted from 0)"
        )
        raise UserError("", problem, "correct these numbers, or remove their rows")
    return x


def _chosen_features(x: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return rows of ``x`` as float32: a view if they are consecutive float32 rows, else a copy."""
    if not x.flags.c_contiguous:
        return x.astype(np.float32, copy=False)[chosen]
    rows = np.flatnonzero(chosen)
    if rows[-1] - rows[0] + 1 == len(rows):
        return x[rows[0] : rows[-1] + 1].astype(np.float32, copy=False)
    features = np.empty((len(rows), x.shape[1]), np.float32)
    for block in row_blocks(features):
        features[block] = x[rows[block]]
    return features


_INTEGER_HINTS = {
    "y": "give remap: true beside npz, which numbers the names in sorted order, or give "
    "whole numbers",
    "split": "give 0 = train, 1 = validation, 2 = test",
}


def _integers(values: NDArray[Any], name: str, rows: int) -> Integers:
    """Return the array ``name`` as int64 ``[rows]``; refuse other shapes and types."""
    values = np.asarray(values)
    if values.shape != (rows,):
        raise UserError(
            "",
            f"{name} has shape {list(values.shape)}",
            f"give one value per row of x: [{rows}]",
        )
    problem = not_whole_numbers(values, name)
    if problem:
        raise UserError("", problem, _INTEGER_HINTS[name])
    return values.astype(np.int64)


def not_whole_numbers(values: NDArray[Any], name: str) -> str:
    """Return what the array ``name`` holds instead of whole numbers; empty if it holds these."""
    if values.dtype.kind in "iu":
        return ""
    if values.dtype.kind not in "US" or not values.size:
        return f"{name} has dtype {values.dtype}"
    first = values.flat[0]
    if isinstance(first, bytes):
        first = first.decode(errors="replace")
    return f"{name} holds names, such as '{first}'"


def _check_split(split: Integers) -> None:
    """Refuse a split ``[n]`` with an unknown value, or without training rows or test rows."""
    unknown = np.setdiff1d(split, [TRAIN, VALIDATION, TEST])
    if len(unknown):
        row = np.argmax(split == unknown[0])
        raise UserError(
            "",
            f"row {row} (counted from 0) has the value {unknown[0]} in split",
            "give 0 = train, 1 = validation (ignored), 2 = test",
        )
    for name, value in (("training", TRAIN), ("test", TEST)):
        if value not in split:
            raise UserError(
                "",
                f"there is no {name} row",
                "give 0 = train and 2 = test in split",
            )


def _check_columns(columns: Columns, rows: int) -> None:
    """Refuse a column that does not have one value per row."""
    for key, values in columns.items():
        if np.shape(values) != (rows,):
            raise UserError(
                "",
                f"{key} has shape {list(np.shape(values))}, so it is no column",
                f"give one value per row of x, [{rows}], or leave it out",
            )


def _class_names(
    class_names: NDArray[Any] | Sequence[str] | None,
    classes: int,
) -> tuple[str, ...]:
    """Return one name per class, or none if none are given; refuse another number of names."""
    if class_names is None:
        return ()
    names = np.asarray(class_names)
    if names.shape != (classes,):
        raise UserError(
            "",
            f"class_names has shape {list(names.shape)}, and there are {classes} classes",
            f"give one name per class, [{classes}], or leave class_names out",
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    return tuple(map(str, names))


def _count_classes(
    labels: Integers,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
) -> int:
    """Return C, the number of classes; refuse labels that are not ``0 .. C-1`` in training.

    Args:
        labels: the labels of all rows ``[n]``.
        train: which of them are training rows.
        test: which of them are test rows.
    """
    present = np.unique(labels[train])
    classes = len(present)
    untrained = np.setdiff1d(labels[test], present)
    if len(untrained):
        row = np.argmax(test & (labels == untrained[0]))
        raise UserError(
            "",
            f"label {untrained[0]} occurs in test rows (the first is row {row}, counted from 0), "
            "but in no training row",
            "remove these test rows, or give some of them split 0 (training)",
        )
    misplaced = np.flatnonzero(present != np.arange(classes))
    if len(misplaced):
        label = present[misplaced[0]]
        row = np.argmax(train & (labels == label))
        listed = ", ".join(map(str, present[:12]))
        if classes > 12:
            listed += ", ..."
        raise UserError(
            "",
            f"row {row} (counted from 0) has label {label} and no training row has label "
            f"{misplaced[0]}: the labels of the training rows are {listed}",
            f"number the classes 0 .. {classes - 1}, or let remap: true do it",
        )
    if classes < 2:
        raise UserError(
            "",
            "all training rows have one label",
            "give at least two classes",
        )
    return classes
