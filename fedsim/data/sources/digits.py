"""Scikit-learn's 8 x 8 digits: 1,797 rows, 10 classes, a stratified quarter for testing; the data set that needs no download."""

from __future__ import annotations

from importlib.metadata import files

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet, PixelArrays
from fedsim.data.split import quarter_for_testing

_NAMES = tuple(map(str, range(10)))


def digits_embeddings(name: str) -> Embeddings:
    """Pixels / 16 as embeddings of 64 dimensions."""
    pixels, y = _digits()
    x = (pixels.reshape(len(y), -1) / 16).astype(np.float32)
    return Embeddings.from_arrays(name, x, y, quarter_for_testing(y, _NAMES))


def digits_images(name: str) -> ImageSet:
    """The same digits as images, for an encoder."""
    pixels, y = _digits()
    images = PixelArrays((pixels * 15.9375).astype(np.uint8))
    return ImageSet(name, images, np.arange(len(y)), y, quarter_for_testing(y, _NAMES), _NAMES)


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    # the file that scikit-learn's load_digits reads; to import scikit-learn takes longer than all else that a small bench prepares
    (file,) = (file for file in files("scikit-learn") or () if file.name == "digits.csv.gz")
    table = np.loadtxt(str(file.locate()), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
