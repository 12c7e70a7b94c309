"""Which data set: what a grid or an option says about one."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.sources import SOURCES
from fedsim.data.sources.source import Asked, Source
from fedsim.errors import nearest
from fedsim.tagged import Tagged

_PATHS = ("npz", "imagefolder", "csv")
"""The sources that a path names."""
CLOSE_NAME = 0.8
"""How alike a name has to be to a known set's to be taken for it misspelled."""


def _others(name: str, known: Sequence[str]) -> str:
    """A hint for a name that is no known set's; a set of another name is another set, so only a misspelled one is guessed."""
    others = f"any other: hf:{name.lower()} if the hub has it, or {{imagefolder: PATH}}, {{csv: PATH}}, {{npz: PATH}} of your own"
    guess = difflib.get_close_matches(name, known, n=1, cutoff=CLOSE_NAME)
    return nearest(name, known) if guess else f"known: {', '.join(sorted(known))}; {others}"


class SplitSpec(BaseModel):
    """Which rows are for testing, where that is not the source's choice.

    Attributes:
        by: a column (a patient's, a lesion's): a fixed, public, stratified quarter of its values is for testing, with all their rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str = Field(min_length=1)


class DatasetSpec(Tagged):
    """Which data set: a known name (``digits``, ``medmnist:organsmnist``, ``hf:user/set``), or a mapping ``{imagefolder: PATH}``.

    Beside these keys a mapping holds the parameters that are its source's own.

    Attributes:
        name: a known data set's name; with a path, what tables call it (default: the path's stem).
        npz: a file with arrays ``x`` [n, d], ``y`` [n], ``split`` [n] (0 = train, 2 = test); further arrays [n] are columns.
        imagefolder: a folder of images: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.
        csv: a table of images with the columns ``path`` and ``label``; ``split`` and further columns if it has them.
        limit: keep at most so many training rows, a fixed stratified choice (of images also at most so many test rows); None keeps all.
        overlap: what to do with training rows that are test rows too: ``error``, ``drop`` them from training, or ``keep`` them; default:
            ``keep`` for data sets with a published split, ``error`` otherwise.
        skip_bad: leave out images that cannot be decoded.
        split: of images, in place of the source's own.
        encoder: what turns the images into embeddings; default: each of the grid's.
        licence: of the data, in words; default: what the catalogue says.
    """

    kinds = SOURCES

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    imagefolder: Path | None = None
    csv: Path | None = None
    limit: int | None = Field(default=None, gt=0)
    overlap: Literal["error", "drop", "keep"] | None = None
    skip_bad: bool = False
    split: SplitSpec | None = None
    encoder: EncoderSpec | None = None
    licence: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _bare_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        kind, _, path = given.partition(":")
        return {kind: path} if kind in _PATHS and path else {"name": given}

    def check_kind(self) -> None:
        """See :class:`Tagged`."""
        paths = [kind for kind in _PATHS if getattr(self, kind) is not None]
        if len(paths) > 1:
            raise ValueError(f"names {' and '.join(paths)}; give one of them")
        if not paths:
            self._check_name()
        if self.source.images is None and (given := "split" if self.split else "encoder" if self.encoder else None):
            raise ValueError(f"'{self.display}' holds embeddings and takes no {given}, which is for images; remove it")

    def _check_name(self) -> None:
        named = {kind: source for kind, source in SOURCES.items() if kind not in _PATHS}
        known = [f"{kind}:{source.argument}" if source.argument else kind for kind, source in named.items()]
        if self.name is None:
            paths = [f"{{{kind}: PATH}}" for kind in _PATHS]
            raise ValueError(f"names no data; give {', '.join([*known, *paths[:-1]])} or {paths[-1]}")
        kind, colon, argument = self.name.partition(":")
        source = named.get(kind)
        if source is not None and source.check is not None:
            source.check(argument)
        elif source is None or bool(argument) != bool(source.argument) or (colon and not argument):
            hint = f"write {{npz: {self.name}}}" if self.name.endswith(".npz") else _others(self.name, known)
            raise ValueError(f"unknown data set '{self.name}'; {hint}")

    def refusal(self, name: str, owners: list[str]) -> str:
        """See :class:`Tagged`."""
        return f"'{self.display}' takes no {name}; it is for {', '.join(owners)}"

    @property
    def kind(self) -> str:
        """The source's word, a key of :data:`fedsim.data.sources.SOURCES`."""
        return next((kind for kind in _PATHS if getattr(self, kind) is not None), str(self.name).partition(":")[0])

    @property
    def source(self) -> Source:
        """Where the data set comes from."""
        return SOURCES[self.kind]

    @property
    def terms(self) -> tuple[str, str]:
        """The licence of the data, in words, and where they come from; empty where that is not known."""
        named = f"{self.kind}:{self.argument}" if self.argument else self.kind
        listing = next((listing for listing in self.source.listing() if listing.dataset == named), None)
        licence, source = ("", "") if listing is None or listing.licence == "yours" else (listing.licence, listing.source)
        return self.licence or licence, source

    @property
    def argument(self) -> str:
        """What follows the source's word, where the data set is known by name."""
        return "" if self.kind in _PATHS else str(self.name).partition(":")[2]

    @property
    def path(self) -> Path | None:
        """The file or folder, where the data set is one."""
        return getattr(self, self.kind, None) if self.kind in _PATHS else None

    @property
    def display(self) -> str:
        """What tables and curves call the data set: with its encoder, if it has one."""
        return self.title if self.encoder is None else f"{self.title} ({self.encoder.display})"

    @property
    def title(self) -> str:
        """What the data set is called, whatever embeds it."""
        name = self.name or (self.path.stem if self.path else "")
        if self.source.display is not None:
            name = self.source.display(self.argument, self.given)
        return name if self.limit is None else f"{name}[:{self.limit}]"

    @property
    def holds_images(self) -> bool:
        """Whether the data set goes through an encoder; one that is both does so only if there is one."""
        return self.source.images is not None and (self.source.embeddings is None or self.encoder is not None)

    def encoded_by(self, encoders: Sequence[EncoderSpec]) -> tuple[DatasetSpec, ...]:
        """The data set with each encoder; itself where it has one, or holds no images."""
        if self.encoder is not None or self.source.images is None or not encoders:
            return (self,)
        return tuple(self.model_copy(update={"encoder": encoder}) for encoder in encoders)

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"licence"} | ({"name"} if self.path else set()))
        return json.dumps(fields, sort_keys=True)

    @property
    def overlap_policy(self) -> str:
        """``overlap``, or its default."""
        return self.overlap or ("keep" if self.source.published else "error")

    @property
    def asked(self) -> Asked:
        """What the source is asked for."""
        return Asked(self.title, self.argument, self.path or Path(), self.given)

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with its relative paths, and its encoder's, taken from ``folder``."""
        paths = {name: path for name, path in self if isinstance(path, Path)}
        update: dict[str, Any] = {name: Path(os.path.abspath(folder / path.expanduser())) for name, path in paths.items()}
        return self.model_copy(update=update | ({"encoder": self.encoder.within(folder)} if self.encoder else {}))
