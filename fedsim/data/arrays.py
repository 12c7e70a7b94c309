"""Archives of arrays (``.npz``) and Parquet files; a manifest inside says what the rows are and how they came to be.

Whatever is wrong with a file comes out as :class:`BadArrays`. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError, not_installed
from fedsim.files import replaced, unread

Arrays = dict[str, NDArray[Any]]
MANIFEST = "manifest"
"""The array that holds the manifest, a JSON text; a Parquet file has it in its metadata, as :data:`PARQUET_MANIFEST`."""
PARQUET_MANIFEST = b"fedsim"


class BadArrays(Exception):
    """A file of arrays that cannot be read; the message says why."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An ``.npz`` file as NumPy has it, without pickled objects, for the block, in which every error becomes a BadArrays."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            yield held
    except Exception as error:  # zipfile, its decompressors and NumPy raise what they like on damaged files
        raise BadArrays(unread(error)) from error


def read_arrays(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file, by name; none may hold Python objects."""
    with opened(path) as held:
        return {name: np.asarray(array) for name, array in held.items()}


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest inside an ``.npz`` file that fedsim wrote; None if there is none or the file cannot be read."""
    try:
        with opened(path) as held:
            found = json.loads(str(held[MANIFEST]))
        return found if isinstance(found, dict) else None
    except BadArrays:
        return None


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write arrays and their manifest, at once or not at all; equal content gives equal bytes."""
    with replaced(path) as part, zipfile.ZipFile(part, "w") as file:
        for name, array in {**arrays, MANIFEST: np.array(json.dumps(manifest))}.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def check_target(out: Path, suffix: str = ".npz", manifest: Callable[[Path], dict[str, Any] | None] = read_manifest) -> None:
    """A file of this ``suffix``, whose ``manifest`` is read so, can be written; asked before the work, not after it."""
    if out.suffix != suffix:
        raise UserError(f"out {out}", f"is not an {suffix} file", f"give {out.with_suffix(suffix) if out.name else f'rows{suffix}'}")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"out {out}", "cannot be written", "give another file")
    if out.exists() and manifest(out) is None:
        raise UserError(f"out {out}", "is there and was not made by fedsim", "give another file, or remove it")
    beside = out.with_suffix(".json")
    if not out.exists() and os.path.lexists(beside):
        raise UserError(f"out {out}", f"{beside}, where its manifest goes, is there already", "give another file, or remove that")


def write_sidecar(out: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest beside its file, for reading."""
    with replaced(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def write_parquet(path: Path, x: NDArray[np.float32], y: NDArray[np.int64], names: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Rows ``[n, d]``, labels ``[n]`` and the classes' names as the Hugging Face hub shows them; equal content gives equal bytes."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise not_installed("format", "pyarrow", "hf") from error
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x, np.float32).reshape(-1)), x.shape[1])
    features = {
        "embedding": {"feature": {"dtype": "float32", "_type": "Value"}, "length": x.shape[1], "_type": "Sequence"},
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode(), PARQUET_MANIFEST: json.dumps(manifest).encode()}
    table = pa.table({"embedding": rows, "label": pa.array(y)}).replace_schema_metadata(notes)
    with replaced(path) as part:
        parquet.write_table(table, part)


def read_parquet_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in a Parquet file that fedsim wrote; None if there is none or the file cannot be read."""
    try:
        from pyarrow import parquet

        manifest = json.loads(parquet.read_schema(path).metadata[PARQUET_MANIFEST])
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if isinstance(manifest, dict) else None
