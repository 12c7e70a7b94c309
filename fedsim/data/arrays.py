"""Archives of arrays (``.npz``), read and written in one place; a manifest inside says what the rows are and how they came to be.

Whatever is wrong with a file comes out as :class:`BadArrays`. Nothing is unpickled, and no memory is taken for what the file merely claims
to hold.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import UserError
from fedsim.files import open_regular, replaced, unread

Arrays = dict[str, NDArray[Any]]
MANIFEST = "manifest"
"""The array that holds the manifest, a JSON text."""


class BadArrays(Exception):
    """A file of arrays that cannot be read; the message says why."""


class Head(NamedTuple):
    """What an array's header says, and where its data begin in the member."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int


class Archive:
    """An open ``.npz`` file."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self.names = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]

    def head(self, name: str) -> Head:
        """An array's header, held against what the member holds and what this machine has.

        Raises:
            BadArrays: there is no such array, or its header cannot be true.
        """
        with named(name), self._member(name) as stream:
            return self._head(name, stream)

    def read(self, name: str) -> NDArray[Any]:
        """An array.

        Raises:
            BadArrays: there is none, or it is damaged or holds Python objects.
        """
        with named(name):
            with self._member(name) as stream:
                self._head(name, stream)
            with self._member(name) as stream:
                array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
                while stream.read(2**20):  # to its end, where the checksum is
                    pass
            return array

    def stream(self, name: str) -> IO[bytes]:
        """An array's member, header first; the caller closes it.

        Raises:
            BadArrays: there is none.
        """
        with named(name):
            return self._member(name)

    def _member(self, name: str) -> IO[bytes]:
        if name not in self.names:
            raise ValueError(f"there is no array '{name}'")
        return self._file.open(f"{name}.npy")

    def _head(self, name: str, stream: IO[bytes]) -> Head:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"format version {version[0]}.{version[1]} is not known")
        # version 3 differs from 2 in names of fields alone
        shape, fortran, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read")
        claimed, offset = math.prod(shape) * dtype.itemsize, stream.tell()
        held = self._file.getinfo(f"{name}.npy").file_size - offset
        if min(shape, default=0) < 0 or claimed != held:
            raise ValueError(f"its header claims {claimed} bytes, and it holds {held}")
        if claimed > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise ValueError(f"it claims {claimed / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}")
        return Head(shape, dtype, fortran, offset)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an ``.npz`` file for the block.

    Raises:
        BadArrays: it is no regular file, or no such archive.
    """
    with ExitStack() as files:
        with named():
            opened = files.enter_context(zipfile.ZipFile(files.enter_context(open_regular(path))))
        yield Archive(opened)


def read_arrays(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file, by name.

    Raises:
        BadArrays: as :func:`open_archive`.
    """
    with open_archive(path) as archive:
        return {name: archive.read(name) for name in archive.names}


@contextmanager
def named(name: str = "") -> Iterator[None]:
    """Every error in the block becomes a BadArrays that names the array."""
    try:
        yield
    except BadArrays:
        raise
    except Exception as error:  # zipfile, its decompressors and NumPy raise what they like on damaged files
        raise BadArrays(f"{name}: {unread(error)}" if name else unread(error)) from error


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


def check_target(out: Path, suffix: str = ".npz", manifest: Callable[[Path], dict[str, Any] | None] = read_manifest) -> None:
    """An ``.npz`` file, or one of another ``suffix`` whose ``manifest`` is read so, can be written; asked before the work, not after it.

    Raises:
        UserError: it cannot.
    """
    if out.suffix != suffix:
        raise UserError(f"out {out}", f"is not an {suffix} file", f"give {out.with_suffix(suffix) if out.name else f'rows{suffix}'}")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"out {out}", "cannot be written", "give another file")
    if out.exists() and manifest(out) is None:
        raise UserError(f"out {out}", "is there and was not made by fedsim", "give another file, or remove it")
    if not out.exists() and os.path.lexists(_sidecar(out)):
        raise UserError(f"out {out}", f"{_sidecar(out)}, where its manifest goes, is there already", "give another file, or remove that")


def write_sidecar(out: Path, manifest: Mapping[str, Any]) -> None:
    """The manifest beside its file, for reading."""
    with replaced(_sidecar(out)) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _sidecar(out: Path) -> Path:
    return out.with_suffix(".json")
