"""Archives of arrays (``.npz``); a manifest inside says what the rows are and how they came to be.

Whatever is wrong with a file comes out as :class:`BadArrays`. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.files import replaced, unread

Arrays = dict[str, NDArray[Any]]
MANIFEST = "manifest"
"""The array that holds the manifest, a JSON text."""
UNIT_NORM = "every row has L2 norm 1"
"""What the manifest says under ``scale`` of embeddings that are scaled as a grid scales them."""


class BadArrays(Exception):
    """A file of arrays that cannot be read; the message says why."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An ``.npz`` file as NumPy has it, without pickled objects, for the block, in which every
    error becomes a BadArrays.
    """
    try:
        with open(path, "rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                raise BadArrays("it is a .npy file, which holds one array")
            with held:
                yield held
    except BadArrays:
        raise
    except (
        Exception
    ) as error:  # zipfile, its decompressors and NumPy raise what they like on damaged files
        raise BadArrays(unread(error)) from error


def read_arrays(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file, by name; none may hold Python objects."""
    with opened(path) as held:
        return {name: _array(held, name) for name in held.files}


def _array(held: Any, name: str) -> NDArray[Any]:
    """An array of an open archive; one of Python objects, as pandas holds texts, is refused by its
    name.
    """
    try:
        return np.asarray(held[name])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        what = f"the array '{name}' holds Python objects, which are not read"
        raise BadArrays(f"{what}; save texts as {name}.astype(str)") from error


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest inside an ``.npz`` file that fedsim wrote; None if there is none or the file
    cannot be read.
    """
    try:
        with opened(path) as held:
            found = json.loads(str(held[MANIFEST]))
        if isinstance(found, dict):
            return found
        return None
    except BadArrays:
        return None


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write arrays and their manifest, at once or not at all; equal content gives equal bytes."""
    with replaced(path) as part, zipfile.ZipFile(part, "w") as file:
        for name, array in {**arrays, MANIFEST: np.array(json.dumps(manifest))}.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def check_target(out: Path) -> None:
    """An ``.npz`` file can be written there; asked before the work, not after it."""
    if out.suffix != ".npz":
        raise UserError(
            f"out {out}",
            "is not an .npz file",
            f"give {out.with_suffix('.npz') if out.name else 'rows.npz'}",
        )
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"out {out}", "cannot be written", "give another file")
    if out.exists() and read_manifest(out) is None:
        raise UserError(
            f"out {out}", "is there and was not made by fedsim", "give another file, or remove it"
        )
    beside = out.with_suffix(".json")
    if not out.exists() and os.path.lexists(beside):
        raise UserError(
            f"out {out}",
            f"{beside}, where its manifest goes, is there already",
            "give another file, or remove that",
        )


def write_sidecar(out: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest beside its file, for reading."""
    with replaced(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
