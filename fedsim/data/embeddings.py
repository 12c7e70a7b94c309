"""A data set in memory: embeddings with labels, split into training and test rows, checked once
when it is made; and public rows.

Public rows are no unit's, so whatever is computed from them alone is free; what mixes in a private
row is a release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic_core import CoreSchema, core_schema

from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError

if TYPE_CHECKING:
    import torch

MORE_STAND_INS = 256
"""Rows beyond the number of dimensions that stand in for public ones where a method is only looked
at; no data set has them.
"""


def unit_norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale every row of finite ``x`` ``[n, d]`` to L2 norm 1: ``x_i / ||x_i||``; zero rows stay
    zero. Rows do not depend on each other.
    """
    # dividing by the largest entry first keeps the squares of huge and tiny rows inside float32
    largest = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))
    unit: NDArray[np.float32] = np.divide(x, np.where(largest > 0, largest, 1).astype(np.float32))
    norm = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    return np.divide(unit, np.where(norm > 0, norm, 1), out=unit)


def row_digests(x: NDArray[np.float32]) -> list[bytes]:
    """A hash of every row ``[n, d]`` that equal ones have in common."""
    return [
        hashlib.sha256(row).digest() for row in np.ascontiguousarray(x) + np.float32(0)
    ]  # -0.0 becomes 0.0


def _hashed(parts: Iterable[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256()
    for head, array in parts:
        content: Any = np.ascontiguousarray(array)  # a buffer, which the types do not say
        digest.update(head.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class PublicRows:
    """A grid's public rows, prepared like the private ones.

    Attributes:
        x: float32 ``[n, d]``, of unit norm; read-only in a worker.
        y: int64 ``[n]``, labels in ``0 .. classes - 1`` of the public source, not of the private
            data; None where it has none.
        name: what tables call them.
        licence: of their source, in words; None where that is not known.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | None = None
    name: str = "public"
    licence: str | None = None

    @classmethod
    def made_up(cls, dim: int, classes: int) -> Self:
        """Labelled rows of no data set, always the same, for rehearsals, checks and audits: there
        they are no private rows.
        """
        x = np.random.default_rng(0).standard_normal((dim + MORE_STAND_INS, dim), dtype=np.float32)
        return cls(unit_norm(x), np.arange(len(x), dtype=np.int64) % classes, "made up")

    def rows(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """A copy of ``x`` on a device."""
        import torch  # a report does without

        return torch.tensor(self.x, device=device)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of rows and labels; the name is no part of it."""
        own = [(f"public {self.x.shape} {self.y is not None}\n", self.x)]
        return _hashed(own if self.y is None else [*own, ("", self.y)])

    @cached_property
    def _known(self) -> frozenset[bytes]:
        """Of every row a digest, made once for all parts of all data sets."""
        return frozenset(row_digests(self.x))

    def beside(self, data: Embeddings) -> Embeddings:
        """The data set with these rows beside it; refuses rows of other dimensions, and data with a
        row that is public too.

        This reads private rows, and tells the user of a simulation of a mistake in the grid;
        nothing of it is in a result or a release.
        """
        if self.x.shape[1] != data.dim:
            what = (
                f"'{self.name}' has rows of {self.x.shape[1]} dimensions, data set "
                f"'{data.name}' of {data.dim}"
            )
            raise UserError("", what, "give public rows that the same encoder embeds")
        for part, private in (("training", data.x_train), ("test", data.x_test)):
            if both := [
                row for row, digest in enumerate(row_digests(private)) if digest in self._known
            ]:
                what = (
                    f"{len(both)} {part} rows of '{data.name}' are public too, the first is "
                    f"row {both[0]}"
                )
                raise UserError("", what, "give public rows that are in no private data set")
        return replace(data, public=self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.is_instance_schema(cls)  # no file holds them


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A labelled data set of embeddings.

    Attributes:
        name: what tables and curves call it.
        x_train: float32 ``[n, d]``, the rows that the clients share out.
        y_train: int64 ``[n]``, labels in ``0 .. classes - 1``.
        x_test: float32 ``[m, d]``, the rows that every algorithm is evaluated on.
        y_test: int64 ``[m]``.
        classes: number of classes, C.
        columns: further values per training row (site, image type), each ``[n]``.
        class_names: what the classes are called; empty where that is not known.
        test_columns: the same values per test row, each ``[m]``.
        public: the grid's public rows, which travel with the data set and are no part of it.
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: int
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    test_columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    public: PublicRows | None = None

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x: NDArray[Any],
        y: NDArray[Any],
        split: NDArray[Any],
        columns: Mapping[str, NDArray[Any]] | None = None,
        class_names: NDArray[Any] | Sequence[str] | None = None,
    ) -> Embeddings:
        """Check raw arrays and divide them by ``split`` ``[n]``: 0 = train, 1 = validation
        (ignored), 2 = test.

        Features ``x`` ``[n, d]`` are of any real dtype, labels ``y`` ``[n]`` 0 .. C-1; every class
        needs a training row.
        """
        features = _features(x)
        columns = columns or {}
        labels = _integers(y, "y", len(features))
        parts = _integers(split, "split", len(features))
        train = parts == TRAIN
        test = parts == TEST
        if unknown := sorted(set(np.unique(parts).tolist()) - {TRAIN, VALIDATION, TEST}):
            raise UserError(
                "",
                f"split has the value {unknown[0]}",
                "give 0 = train, 1 = validation (ignored), 2 = test",
            )
        for key, values in columns.items():
            if np.shape(values) != (len(features),):
                what = f"{key} has shape {list(np.shape(values))}, so it is no column"
                raise UserError(
                    "", what, f"give one value per row of x, [{len(features)}], or leave it out"
                )
        for part, rows in (("training", train), ("test", test)):
            if not rows.any():
                raise UserError(
                    "", f"there is no {part} row", "give 0 = train and 2 = test in split"
                )
        classes = _classes(labels[train], labels[test])
        names = np.asarray([] if class_names is None else class_names)
        if class_names is not None and names.shape != (classes,):
            what = f"class_names has shape {list(names.shape)}, and there are {classes} classes"
            raise UserError(
                "", what, f"give one name a class, [{classes}], or leave class_names out"
            )
        return cls(
            name=name,
            x_train=features[train],
            y_train=labels[train],
            x_test=features[test],
            y_test=labels[test],
            classes=classes,
            columns={key: np.asarray(values)[train] for key, values in columns.items()},
            class_names=tuple(map(str, names)),
            test_columns={key: np.asarray(values)[test] for key, values in columns.items()},
        )

    def others(self, column: str, value: str) -> NDArray[np.bool_]:
        """Which training rows do not have a column's ``value``."""
        return np.asarray(self.columns[column].astype(np.str_) != value)

    def unseen(self, column: str, value: str) -> Embeddings:
        """The data set without a column's ``value`` in training, and with that value alone among
        the test rows.
        """
        train = self.others(column, value)
        test = self.test_columns[column].astype(np.str_) == value
        if not test.any():
            raise UserError("", f"no test row has {column} '{value}'", "name another site")
        columns = {key: values[test] for key, values in self.test_columns.items()}
        left = self.trained_on(train, f"without {column} '{value}'")
        return replace(
            left, x_test=self.x_test[test], y_test=self.y_test[test], test_columns=columns
        )

    def trained_on(self, rows: NDArray[Any], how: str = "") -> Embeddings:
        """The data set with some of its training rows, of every class one at least; ``how`` they
        were chosen is for the message.
        """
        if missing := sorted(set(range(self.classes)) - set(self.y_train[rows].tolist())):
            raise UserError(
                "",
                f"{how} class '{self.names[missing[0]]}' has no training row",
                "leave the class out of the data",
            )
        columns = {key: values[rows] for key, values in self.columns.items()}
        return replace(
            self, x_train=self.x_train[rows], y_train=self.y_train[rows], columns=columns
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called, or their numbers."""
        return self.class_names or tuple(map(str, range(self.classes)))

    @property
    def dim(self) -> int:
        """Number of features, d."""
        return int(self.x_train.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the content; name and public rows are no part of
        it.
        """
        arrays: dict[str, NDArray[Any]] = {
            name: getattr(self, name) for name in ("x_train", "y_train", "x_test", "y_test")
        }
        arrays |= {f"column {key}": self.columns[key] for key in sorted(self.columns)}
        arrays |= {
            f"test column {key}": self.test_columns[key] for key in sorted(self.test_columns)
        }
        return _hashed(
            (f"{key} {array.dtype.str} {array.shape}\n", array) for key, array in arrays.items()
        )


def untested(data: Embeddings, site: str | None = None) -> str | None:
    """What is wrong with scores on test rows that lack classes, None where they lack none;
    ``site``: whose rows alone they are.
    """
    missing = sorted(set(range(data.classes)) - set(data.y_test.tolist()))
    if not missing:
        return None
    names = [data.names[label] for label in missing[:5]] + ["..."] * (len(missing) > 5)
    of = f"{len(missing)} of its {data.classes} classes ({', '.join(names)})"
    return (
        f"{f'{site} of ' if site else ''}{data.name} has no test row of {of}: balanced "
        "accuracy is over the others"
    )


def _features(x: NDArray[Any]) -> NDArray[np.float32]:
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(
            "", f"x has shape {list(x.shape)}", "give one row of features per example: [n, d]"
        )
    if x.dtype.kind not in "fiu":
        raise UserError("", f"x has dtype {x.dtype}", "give real numbers, e.g. float32 or float16")
    with np.errstate(over="ignore"):  # a float64 too large for float32 is reported below
        features = x.astype(np.float32, copy=False)
    bad = ~np.isfinite(features)
    if bad.any():
        what = (
            f"{int(bad.sum())} NaN or infinite values, or beyond float32, the first in row "
            f"{int(bad.any(axis=1).argmax())}"
        )
        raise UserError("", f"x has {what}", "repair or drop them")
    return features


def _integers(values: NDArray[Any], name: str, rows: int) -> NDArray[np.int64]:
    values = np.asarray(values)
    if values.ndim != 1 or len(values) != rows:
        raise UserError(
            "", f"{name} has shape {list(values.shape)}", f"give one value per row of x: [{rows}]"
        )
    if wrong := not_whole_numbers(values, name):
        hints = {
            "y": "give remap: true beside npz, which numbers the names in sorted order, or give "
            "whole numbers",
            "split": "give 0 = train, 1 = validation, 2 = test",
        }
        raise UserError("", wrong, hints.get(name, "give integers"))
    return values.astype(np.int64)


def not_whole_numbers(values: NDArray[Any], name: str) -> str:
    """What an array holds in place of whole numbers, in words; empty where it holds these."""
    if values.dtype.kind in "iu":
        return ""
    if values.dtype.kind not in "US" or not values.size:
        return f"{name} has dtype {values.dtype}"
    first = values.flat[0]
    if isinstance(first, bytes):
        text = first.decode(errors="replace")
    else:
        text = str(first)
    return f"{name} holds names, such as '{text}'"


def _classes(y_train: NDArray[np.int64], y_test: NDArray[np.int64]) -> int:
    present = np.unique(y_train)
    classes = len(present)
    if len(untrained := np.setdiff1d(y_test, present)):
        raise UserError(
            "",
            f"no training row has label {untrained[0]}, test rows have",
            "drop these test rows, or train on some",
        )
    if present[0] != 0 or present[-1] != classes - 1:
        what = f"the labels of the training rows are {', '.join(map(str, present[:12].tolist()))}"
        raise UserError(
            "", what, f"number the classes 0 .. {classes - 1}, or let remap: true do it"
        )
    if classes < 2:
        raise UserError("", "all training rows have one label", "give at least two classes")
    return classes
