"""``.npz`` files of embeddings: arrays ``x`` [n, d], ``y`` [n] and ``split`` [n]; further arrays [n] are columns, single values are notes.

Public rows may have no ``y`` and ``split``. ``class_names`` [C], if it is there, says what the classes are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import Arrays, BadArrays, read_arrays
from fedsim.data.embeddings import Embeddings
from fedsim.data.split import TEST, TRAIN, made_up_labels
from fedsim.errors import UserError, at


def load_embedding_file(path: Path, name: str, *, remap: bool = False) -> Embeddings:
    """Read and check a file of embeddings, without pickled objects; ``remap`` numbers the labels 0 .. C-1 in sorted order."""
    arrays = _read(path)
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    names = arrays.pop("class_names", None)
    with at(str(path)):
        if remap:
            y, names = remapped(y, split)  # the file's names belong to the labels as they were
        columns = {key: values for key, values in arrays.items() if values.ndim}  # a single value is a note, such as a manifest
        return Embeddings.from_arrays(name, x, y, split, columns, names)


def without_labels(path: Path, name: str) -> Embeddings | None:
    """The rows of a file that has no ``y``, in place of which are made-up labels; None for one that has."""
    arrays = _read(path, ("x",))
    if "y" in arrays:
        return None
    with at(str(path)):
        return Embeddings.from_arrays(name, arrays["x"], *made_up_labels(len(arrays["x"])))


def remapped(y: NDArray[Any], split: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Labels of training and test rows as 0 .. C-1 in sorted order, and what they were where that is text.

    Arrays of another shape, and a split that is no whole numbers, come back as they are, to be refused.
    """
    if y.ndim != 1 or split.shape != y.shape or split.dtype.kind not in "iu":
        return y, None
    if y.dtype.kind not in "iuUS":
        raise UserError("", f"y has dtype {y.dtype}", "give whole numbers or names")
    used = (split == TRAIN) | (split == TEST)
    labels = np.zeros(len(y), dtype=np.int64)
    values, labels[used] = np.unique(y[used], return_inverse=True)
    try:
        names = values.astype(np.str_) if y.dtype.kind in "US" else None
    except UnicodeDecodeError as error:
        raise UserError("", f"y has the value {error.object!r}, which is not ASCII", "give names as Unicode") from error
    trained = labels[split == TRAIN]
    if len(trained) and len(untrained := np.setdiff1d(labels[split == TEST], trained)):
        called = values[untrained[0]] if names is None else f"'{names[untrained[0]]}'"
        raise UserError("", f"no training row has label {called}, test rows have", "drop these test rows, or train on some")
    return labels, names


def _read(path: Path, needed: Sequence[str] = ("x", "y", "split")) -> Arrays:
    try:
        arrays = read_arrays(path)
    except BadArrays as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(str(path), "there is no such file", "give the path of an .npz file, relative to the grid file") from error
        raise UserError(str(path), f"cannot be read ({error})", "give an .npz file of plain arrays x, y and split") from error
    if missing := [key for key in needed if key not in arrays]:
        held = f"it holds {', '.join(sorted(arrays))}" if arrays else "it holds no named arrays"
        raise UserError(str(path), f"there is no array '{missing[0]}'", f"give x [n, d], y [n] and split [n] ({held})")
    return arrays
