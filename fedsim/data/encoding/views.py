"""Several views of one image: fixed flips and crops, the same for every image, so that a row depends on its own image alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from fedsim.data.split import SPLIT_SEED

SMALLEST_CROP = 0.8
"""Of an image's sides: a view shows 80 to 100 % of them."""


def views_of(image: Image.Image, count: int) -> Iterator[Image.Image]:
    """The image itself, and ``count - 1`` crops of it of which about half are mirrored; view k is the same whatever ``count``."""
    yield image
    for view in range(1, count):
        side, left, top, mirrored = np.random.default_rng((SPLIT_SEED, view)).random(4)
        width, height = (max(1, round(size * (SMALLEST_CROP + (1 - SMALLEST_CROP) * side))) for size in image.size)
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        crop = image.crop((x, y, x + width, y + height))
        yield ImageOps.mirror(crop) if mirrored < 0.5 else crop
