"""Reads and writes ``.npz`` archives with a manifest that says how their arrays were computed.

A file that cannot be read raises :class:`BadArrays`. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.files import replaced, unread

Arrays = dict[str, NDArray[Any]]
MANIFEST = "manifest"
"""The name of the array that holds the manifest as a JSON text."""
UNIT_NORM = "every row has L2 norm 1"
"""The value of ``scale`` in a manifest whose embeddings are scaled as a grid scales them."""


class BadArrays(Exception):
    """Raised for an archive that cannot be read; the message says why."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an ``.npz`` file for the block, without support for pickled objects.

    Yields:
        NumPy's archive, which reads an array when it is looked up by name.

    Raises:
        BadArrays: the file is no archive, or any error was raised inside the block.
    """
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise BadArrays("it is a .npy file, which holds one array")
            with archive:
                yield archive
    except BadArrays:
        raise
    # For damaged files zipfile, its decompressors and NumPy raise errors of many types.
    except Exception as error:
        raise BadArrays(unread(error)) from error


def read_arrays(path: Path) -> Arrays:
    """Return all arrays of an ``.npz`` file by name.

    Raises:
        BadArrays: the file cannot be read, or an array holds Python objects.
    """
    with opened(path) as archive:
        return {name: _read_array(archive, name) for name in archive.files}


def _read_array(archive: Any, name: str) -> NDArray[Any]:
    """Return one array of an open archive; refuse Python objects, which pandas uses for texts."""
    try:
        return np.asarray(archive[name])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        problem = f"the array '{name}' holds Python objects, which are not read"
        raise BadArrays(f"{problem}; save texts as {name}.astype(str)") from error


def read_folder(path: Path) -> Arrays:
    """Return the arrays of a folder of ``.npy`` files by name.

    ``x`` stays on disk and is mapped into memory, because it may be larger than the memory.

    Raises:
        BadArrays: the folder or a file cannot be read, or an array holds Python objects.
    """
    if not path.is_dir():
        raise BadArrays("it is no folder")
    arrays: Arrays = {}
    for file in sorted(path.glob("*.npy")):
        mode: Literal["r"] | None = None
        if file.stem == "x":
            mode = "r"
        try:
            arrays[file.stem] = np.load(file, mmap_mode=mode, allow_pickle=False)
        # Damaged headers raise errors of many types.
        except Exception as error:
            raise BadArrays(f"{file.name}: {unread(error)}") from error
    return arrays


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest inside an ``.npz`` file that fedsim wrote.

    Returns:
        The manifest; None if the file cannot be read or has no manifest.
    """
    try:
        with opened(path) as archive:
            manifest = json.loads(str(archive[MANIFEST]))
    except BadArrays:
        return None
    if isinstance(manifest, dict):
        return manifest
    return None


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write arrays and their manifest to an ``.npz`` file, completely or not at all.

    Equal content gives equal bytes, because the archive holds no time stamps.
    """
    contents = {**arrays, MANIFEST: np.array(json.dumps(manifest))}
    with replaced(path) as unfinished, zipfile.ZipFile(unfinished, "w") as file:
        for name, array in contents.items():
            # The size of an entry is not known before it is written, and may exceed 2 GiB.
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def check_target(out: Path) -> None:
    """Check that an ``.npz`` file can be written to ``out``, before hours are spent on its content.

    Raises:
        UserError: the name does not end in ``.npz``, the folder cannot be written to, or a file
            that fedsim did not write would be replaced.
    """
    where = f"out {out}"
    if out.suffix != ".npz":
        example = out.with_suffix(".npz") if out.name else "rows.npz"
        raise UserError(where, "is not an .npz file", f"give {example}")
    existing_folder = next(parent for parent in out.absolute().parents if parent.exists())
    writable = existing_folder.is_dir() and os.access(existing_folder, os.W_OK)
    if out.is_dir() or not writable:
        raise UserError(where, "cannot be written", "give another file")
    if out.exists():
        if read_manifest(out) is None:
            raise UserError(
                where,
                "already exists and was not made by fedsim, so it is not replaced",
                "give another file, or remove this one",
            )
        return
    # A new archive gets a new sidecar, so a file in its place belongs to somebody else.
    sidecar = out.with_suffix(".json")
    if os.path.lexists(sidecar):
        raise UserError(
            where,
            f"{sidecar}, where its manifest goes, is there already",
            "give another file, or remove that",
        )


def write_sidecar(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest as a ``.json`` file beside the archive ``out``, for people to read."""
    with replaced(out.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
