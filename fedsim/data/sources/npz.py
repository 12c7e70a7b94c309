"""``.npz`` files of embeddings: arrays ``x`` [n, d], ``y`` [n] and ``split`` [n]; further arrays [n] are columns, single values are notes.

Public rows may have no ``y`` and ``split``. ``class_names`` [C], if it is there, says what the classes are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, read_arrays
from fedsim.data.embeddings import Embeddings
from fedsim.data.split import NO_LABELS, TEST, TRAIN, made_up_labels
from fedsim.errors import UserError, at


def load_embedding_file(path: Path, name: str, *, remap: bool = False, public: bool = False) -> Embeddings:
    """Read and check a file of embeddings, without pickled objects; ``remap`` numbers the labels 0 .. C-1 in sorted order.

    ``public`` rows without ``y`` are given made-up labels, called :data:`fedsim.data.split.NO_LABELS`.
    """
    try:
        arrays = read_arrays(path)
    except BadArrays as error:
        raise UserError(str(path), f"cannot be read ({error})", "give an .npz file of plain arrays x, y and split") from error
    if public and "x" in arrays and "y" not in arrays:
        y, split = made_up_labels(len(arrays["x"]))
        arrays = {"x": arrays["x"], "y": y, "split": split, "class_names": np.array(NO_LABELS)}
    if missing := [key for key in ("x", "y", "split") if key not in arrays]:
        what = f"there is no array '{missing[0]}'"
        raise UserError(str(path), what, f"give x [n, d], y [n] and split [n] (it holds {', '.join(sorted(arrays))})")
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    names = arrays.pop("class_names", None)
    with at(str(path)):
        if remap and y.ndim == 1 and split.shape == y.shape:  # else they are refused below
            y, names = _remapped(y, split)  # the file's names belong to the labels as they were
        columns = {key: values for key, values in arrays.items() if values.ndim}  # a single value is a note, such as a manifest
        return Embeddings.from_arrays(name, x, y, split, columns, names)


def _remapped(y: NDArray[Any], split: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.str_] | None]:
    """Labels of training and test rows as 0 .. C-1 in sorted order, and what they were where that is text."""
    if y.dtype.kind not in "iuUS":
        raise UserError("", f"y has dtype {y.dtype}", "give whole numbers or names")
    used = (split == TRAIN) | (split == TEST)
    labels = np.zeros(len(y), dtype=np.int64)
    values, labels[used] = np.unique(y[used], return_inverse=True)
    untrained = np.setdiff1d(y[split == TEST], y[split == TRAIN])
    if len(untrained) and (split == TRAIN).any():
        raise UserError("", f"no training row has label {untrained[0]}, test rows have", "drop these test rows, or train on some")
    return labels, values.astype(np.str_) if y.dtype.kind in "US" else None
