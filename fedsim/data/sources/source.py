"""What a source of data sets is: how a grid names one, how it is read, what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.data.embeddings import Embeddings
from fedsim.data.images import ImageSet
from fedsim.errors import UserError
from fedsim.files import cache_folder
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
        unlabelled: reads one without labels, which do as public rows, with made-up labels in their place; None for one that has labels.
        argument: what has to follow the source's word after a colon, as messages spell it; empty: nothing.
        params: the parameters that are its own, with their defaults.
        published: whether its split is a published one; training rows that are test rows too are then kept.
        check: raises a ValueError for an argument that it does not know; None where that is seen when it is read.
        display: what tables call a data set, by argument and parameters; None: its name.
    """

    listing: Callable[[], Sequence[Listing]]
    images: Callable[[Asked], ImageSet] | None = None
    embeddings: Callable[[Asked], Embeddings] | None = None
    unlabelled: Callable[[Asked], ImageSet | Embeddings | None] | None = None
    argument: str = ""
    params: type[KindParams] = KindParams
    published: bool = False
    check: Callable[[str], None] | None = None
    display: Callable[[str, Any], str] | None = None


class RootParams(KindParams):
    """Parameters of a set whose files lie in a folder.

    Attributes:
        root: the folder; default: the set's own in fedsim's cache.
    """

    root: Path | None = None


def check_held(root: Path, name: str, needed: Sequence[str | Sequence[str]], url: str) -> None:
    """Check that a folder holds the files of a known set, of several names any one.

    Raises:
        UserError: one is missing; with where to get it.
    """
    for names in ([one] if isinstance(one, str) else one for one in needed):
        if not any((root / file).exists() for file in names):
            hint = f"download the files of {name} from {url} and unpack them into {root}, or name another folder with root:"
            raise UserError(str(root), f"there is no {names[0]}", hint)


def known_folder(
    name: str, read: Callable[[Path, str], ImageSet], *, needed: Sequence[str | Sequence[str]], facts: tuple[str, str, str, str], url: str
) -> Source:
    """A set of images that a user downloads into one folder.

    Args:
        name: its word in a grid, and its folder's in the cache.
        read: the images, from the folder and the name that tables call it.
        needed: what the folder must hold; of several any one.
        facts: classes, split, pixels and licence, for the catalogue.
        url: where its files are to be had.
    """

    def images(asked: Asked) -> ImageSet:
        root = asked.given.root or cache_folder() / name
        check_held(root, name, needed, url)
        return read(root, asked.name)

    def listing() -> list[Listing]:
        root = cache_folder() / name
        return [Listing(name, *facts, url, "yes" if root.is_dir() else f"no; root: FOLDER or {root}")]

    return Source(listing, images=images, params=RootParams, published=True)
