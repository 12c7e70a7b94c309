"""Labelled rows as a Parquet file that the Hugging Face hub shows: columns ``embedding`` [d] and ``label``, with the classes' names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import not_installed
from fedsim.files import replaced

MANIFEST_KEY = b"fedsim"
"""The key of a file's metadata that holds the manifest, a JSON text."""


def write_parquet(path: Path, x: NDArray[np.float32], y: NDArray[np.int64], names: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """Write rows ``[n, d]``, labels ``[n]`` and the classes' names, with a manifest in the metadata; equal content gives equal bytes."""
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
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode(), MANIFEST_KEY: json.dumps(manifest).encode()}
    table = pa.table({"embedding": rows, "label": pa.array(y)}).replace_schema_metadata(notes)
    with replaced(path) as part:
        parquet.write_table(table, part)


def read_parquet_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in a Parquet file that fedsim wrote; None if there is none or the file cannot be read."""
    try:
        from pyarrow import parquet

        manifest = json.loads(parquet.read_schema(path).metadata[MANIFEST_KEY])
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if isinstance(manifest, dict) else None
