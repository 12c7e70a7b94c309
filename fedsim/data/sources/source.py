"""What a source of data sets is: how a grid names one, how it is read, what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet


@dataclass(frozen=True)
class Asked:
    """One data set, as a source is asked for it.

    Attributes:
        name: what tables and curves call it.
        argument: what follows the source's word: ``organsmnist`` of ``medmnist:organsmnist``.
        path: its file or folder, where it is given by one.
        root: the folder of its files, where another one than usual is given.
        size: pixels.
        remap: whether labels are numbered anew.
    """

    name: str
    argument: str = ""
    path: Path = Path()
    root: Path | None = None
    size: int = 28
    remap: bool = False


class Listing(NamedTuple):
    """A line of the catalogue."""

    dataset: str
    classes: str
    split: str
    pixels: str
    licence: str
    source: str
    held: str = ""


@dataclass(frozen=True)
class Source:
    """Where data sets come from. Readers raise UserErrors that name what they know, such as a path; the grid's key is added above.

    Attributes:
        listing: what the catalogue says.
        images: reads a data set as images; None where there are none.
        embeddings: reads a data set as embeddings, without an encoder; None where it needs one.
        argument: what has to follow the source's word after a colon, as messages spell it; empty: nothing.
        options: keys of a data set that are for this source: ``root``, ``size``, ``remap``.
        published: whether its split is a published one; training rows that are test rows too are then kept.
        check: raises a ValueError for an argument that it does not know; None where that is seen when it is read.
        display: what tables call a data set, by argument and pixels; None: its name.
    """

    listing: Callable[[], Sequence[Listing]]
    images: Callable[[Asked], ImageSet] | None = None
    embeddings: Callable[[Asked], Embeddings] | None = None
    argument: str = ""
    options: tuple[str, ...] = ()
    published: bool = False
    check: Callable[[str], None] | None = None
    display: Callable[[str, int], str] | None = None
