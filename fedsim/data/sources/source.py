"""What a source of data sets is: how a grid names one, how it is read, what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet
from fedsim.tagged import KindParams


@dataclass(frozen=True)
class Asked:
    """One data set, as a source is asked for it.

    Attributes:
        name: what tables and curves call it.
        argument: what follows the source's word: ``organsmnist`` of ``medmnist:organsmnist``.
        path: its file or folder, where it is given by one.
        given: the source's own parameters.
    """

    name: str
    argument: str = ""
    path: Path = Path()
    given: Any = field(default_factory=KindParams)


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
        params: the parameters that are its own, with their defaults.
        published: whether its split is a published one; training rows that are test rows too are then kept.
        check: raises a ValueError for an argument that it does not know; None where that is seen when it is read.
        display: what tables call a data set, by argument and parameters; None: its name.
    """

    listing: Callable[[], Sequence[Listing]]
    images: Callable[[Asked], ImageSet] | None = None
    embeddings: Callable[[Asked], Embeddings] | None = None
    argument: str = ""
    params: type[KindParams] = KindParams
    published: bool = False
    check: Callable[[str], None] | None = None
    display: Callable[[str, Any], str] | None = None
