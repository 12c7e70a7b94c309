"""Reads data sets of embeddings from ``.npz`` files, and from folders of ``.npy`` files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import Arrays, BadArrays, read_arrays, read_folder
from fedsim.data.embeddings import Embeddings
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import NO_LABELS, TEST, TRAIN, Integers, made_up_labels
from fedsim.errors import UserError, at


def read_npz(spec: DatasetSpec, public: bool = False) -> Embeddings:
    """Read and check an ``.npz`` file of embeddings, without scaling them.

    The file holds arrays ``x`` [n, d], ``y`` [n] and ``split`` [n], and optionally ``class_names``
    [C]. All other arrays are columns [n]. A single value, such as a manifest, is ignored.

    Args:
        spec: the data set; with ``remap``, the labels are numbered ``0 .. C-1`` in sorted order.
        public: whether the rows are public. Public rows without ``y`` get made-up labels, which
            have the names :data:`fedsim.data.split.NO_LABELS`. Other arrays are then ignored.

    Raises:
        UserError: the file cannot be read, or an array is missing or wrong.
    """
    hint = "give an .npz file of plain arrays x, y and split, as numpy.savez writes it"
    return _read(spec, public, read_arrays, hint)


def read_npy(spec: DatasetSpec, public: bool = False) -> Embeddings:
    """Read and check a folder of ``.npy`` files, one per array, without scaling the embeddings.

    Each array that :func:`read_npz` describes is a file here: ``x.npy``, ``y.npy`` and so on.
    ``x.npy`` is mapped into memory and read in blocks. The arguments are those of :func:`read_npz`.

    Raises:
        UserError: a file cannot be read, or an array is missing or wrong.
    """
    hint = (
        "give a folder with x.npy, y.npy and split.npy, and columns as further files, each an "
        "array of numbers or texts as numpy.save writes it"
    )
    return _read(spec, public, read_folder, hint)


def _read(
    spec: DatasetSpec,
    public: bool,
    read: Callable[[Path], Arrays],
    hint: str,
) -> Embeddings:
    """Read the arrays of a data set and check them; see :func:`read_npz`.

    Args:
        spec: the data set.
        public: whether the rows are public.
        read: reads the arrays at a path, by name.
        hint: what to do if they cannot be read.
    """
    path = spec.path or Path()
    where = str(path)
    try:
        arrays = read(path)
    except BadArrays as error:
        raise UserError(where, f"cannot be read ({error})", hint) from error
    if public and "x" in arrays and "y" not in arrays:
        y, split = made_up_labels(len(arrays["x"]))
        arrays = {"x": arrays["x"], "y": y, "split": split, "class_names": np.array(NO_LABELS)}
    for key in ("x", "y", "split"):
        if key not in arrays:
            raise UserError(
                where,
                f"there is no array '{key}'",
                f"give x [n, d], y [n] and split [n] (it holds {', '.join(sorted(arrays))})",
            )
    x, y, split = (arrays.pop(key) for key in ("x", "y", "split"))
    class_names = arrays.pop("class_names", None)
    with at(where):
        if spec.remap and y.ndim == 1 and split.shape == y.shape:  # other shapes are refused below
            # The file's names belong to its own labels, so they are replaced with the labels.
            y, class_names = _remap(y, split)
        columns = {key: values for key, values in arrays.items() if values.ndim}
        return Embeddings.from_arrays(
            spec.title,
            x,
            y,
            split,
            columns,
            class_names,
        )


def _remap(y: NDArray[Any], split: NDArray[Any]) -> tuple[Integers, NDArray[Any] | None]:
    """Return labels ``0 .. C-1`` in sorted order, and the class names if the labels were texts.

    The values are those of training and test rows; validation rows, which are ignored, get label 0.
    """
    if y.dtype.kind not in "iuUS":
        raise UserError("", f"y has dtype {y.dtype}", "give whole numbers or names")
    used = (split == TRAIN) | (split == TEST)
    labels = np.zeros(len(y), dtype=np.int64)
    # A label is the position of its value among the sorted values.
    values, labels[used] = np.unique(y[used], return_inverse=True)
    # from_arrays would refuse these labels, too, but by their new numbers.
    untrained = np.setdiff1d(y[split == TEST], y[split == TRAIN])
    if len(untrained) and (split == TRAIN).any():
        raise UserError(
            "",
            f"label {untrained[0]} occurs in test rows, but in no training row",
            "remove these test rows, or give some of them split 0 (training)",
        )
    if y.dtype.kind in "US":
        return labels, values
    return labels, None
