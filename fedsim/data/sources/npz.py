"""Files of embeddings as a source."""

from __future__ import annotations

from fedsim.data.npz import load_embedding_file
from fedsim.data.sources.source import Listing, Source
from fedsim.tagged import KindParams


class NpzParams(KindParams):
    """Parameters of files of embeddings.

    Attributes:
        remap: number the labels 0 .. C-1 in sorted order.
    """

    remap: bool = False


NPZ = Source(
    lambda: [Listing("{npz: PATH}", "yours", "array split", "embeddings", "yours", "your files")],
    embeddings=lambda asked: load_embedding_file(asked.path, asked.name, remap=asked.given.remap),
    params=NpzParams,
)
