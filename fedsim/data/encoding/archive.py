"""``.npz`` files that carry a manifest: what their rows are and how they came to be."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.arrays import BadArrays, open_archive
from fedsim.errors import UserError
from fedsim.files import replaced

MANIFEST = "manifest"
"""The array that says what the rows are and how they came to be."""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest inside an ``.npz`` file that fedsim wrote; None if there is none or the file cannot be read."""
    try:
        with open_archive(path) as held:
            found = json.loads(str(held.read(MANIFEST)))
        return found if isinstance(found, dict) else None
    except (BadArrays, ValueError, RecursionError):
        return None


def write_npz(
    path: Path,
    shape: tuple[int, int],
    dtype: str,
    rows: Iterable[NDArray[np.floating]],
    arrays: Mapping[str, NDArray[Any]],
    manifest: Mapping[str, Any],
) -> None:
    """Write an ``.npz`` file whose ``x`` comes in pieces, at once or not at all; equal content gives equal bytes.

    Args:
        path: the file.
        shape: of ``x``.
        dtype: of ``x``.
        rows: the pieces of ``x``, in order.
        arrays: the other arrays.
        manifest: what the file carries as ``manifest``, a JSON text.
    """
    with replaced(path) as part, zipfile.ZipFile(part, "w") as file:
        with file.open(zipfile.ZipInfo("x.npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
            for piece in rows:
                stream.write(np.ascontiguousarray(piece, dtype).tobytes())
        for name, array in {**arrays, MANIFEST: np.array(json.dumps(manifest))}.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w") as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def check_target(out: Path) -> None:
    """An ``.npz`` file can be written here; asked before the work, not after it.

    Raises:
        UserError: it cannot.
    """
    if out.suffix != ".npz":
        raise UserError(f"--out {out}", "is not an .npz file", f"give {out.with_suffix('.npz') if out.name else 'rows.npz'}")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}", "cannot be written", "give another file")
    if out.exists() and read_manifest(out) is None:
        raise UserError(f"--out {out}", "is there and was not made by fedsim", "give another file, or remove it")
    if not out.exists() and os.path.lexists(_sidecar(out)):
        raise UserError(f"--out {out}", f"{_sidecar(out)}, where its manifest goes, is there already", "give another file, or remove that")


def write_sidecar(out: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest beside its file, for reading."""
    with replaced(_sidecar(out)) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sidecar(out: Path) -> Path:
    return out.with_suffix(".json")
