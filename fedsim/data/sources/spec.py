"""Which data set: what a grid or an option says about one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.sources import SOURCES
from fedsim.data.sources.source import Asked, Source
from fedsim.errors import nearest

_PATHS = ("npz", "imagefolder", "csv")
"""The sources that a path names."""


class DatasetSpec(BaseModel):
    """Which data set: a known name (``digits``, ``medmnist:organsmnist``, ``hf:user/set``), or a mapping ``{imagefolder: PATH}``.

    Attributes:
        name: a known data set's name; with a path, what tables call it (default: the path's stem).
        npz: a file with arrays ``x`` [n, d], ``y`` [n], ``split`` [n] (0 = train, 2 = test); further arrays [n] are columns.
        imagefolder: a folder of images: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.
        csv: a table of images with the columns ``path`` and ``label``; ``split`` and further columns if it has them.
        root: the folder that holds a ``medmnist`` or ``milk10k`` data set's files; default: the package's, or fedsim's cache.
        size: pixels of a ``medmnist`` data set: 28, 64, 128 or 224.
        limit: keep at most so many training rows, a fixed stratified choice (of images also at most so many test rows); None keeps all.
        overlap: what to do with training rows that are test rows too: ``error``, ``drop`` them from training, or ``keep`` them; default:
            ``keep`` for data sets with a published split, ``error`` otherwise.
        remap: number the labels of an ``npz`` file 0 .. C-1 in sorted order.
        skip_bad: leave out images that cannot be decoded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    imagefolder: Path | None = None
    csv: Path | None = None
    root: Path | None = None
    size: Literal[28, 64, 128, 224] = 28
    limit: int | None = Field(default=None, gt=0)
    overlap: Literal["error", "drop", "keep"] | None = None
    remap: bool = False
    skip_bad: bool = False

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        kind, colon, path = given.partition(":")
        return {kind: path} if colon and kind in _PATHS else {"name": given}

    @model_validator(mode="after")
    def _known(self) -> DatasetSpec:
        given = [kind for kind in _PATHS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"names {' and '.join(given)}; give one of them")
        if not given:
            self._check_name()
        for key in ("root", "size", "remap"):
            if getattr(self, key) != type(self).model_fields[key].default and key not in self.source.options:
                takers = ", ".join(sorted(kind for kind, source in SOURCES.items() if key in source.options))
                raise ValueError(f"'{self.display}' takes no {key}; it is for {takers}")
        return self

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
            hint = f"write {{npz: {self.name}}}" if self.name.endswith(".npz") else nearest(self.name, known)
            raise ValueError(f"unknown data set '{self.name}'; {hint}")

    @property
    def kind(self) -> str:
        """The source's word, a key of :data:`fedsim.data.sources.SOURCES`."""
        return next((kind for kind in _PATHS if getattr(self, kind) is not None), str(self.name).partition(":")[0])

    @property
    def source(self) -> Source:
        """Where the data set comes from."""
        return SOURCES[self.kind]

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
        """What tables and curves call the data set."""
        name = self.name or (self.path.stem if self.path else "")
        if self.source.display is not None:
            name = self.source.display(self.argument, self.size)
        return name if self.limit is None else f"{name}[:{self.limit}]"

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"name"} if self.path else set())
        return json.dumps(fields, sort_keys=True)

    @property
    def overlap_policy(self) -> str:
        """``overlap``, or its default."""
        return self.overlap or ("keep" if self.source.published else "error")

    @property
    def asked(self) -> Asked:
        """What the source is asked for."""
        return Asked(self.display, self.argument, self.path or Path(), self.root, self.size, self.remap)

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with its relative paths taken from ``folder``."""
        paths = {key: path for key in (*_PATHS, "root") if (path := getattr(self, key)) is not None}
        return self.model_copy(update={key: Path(os.path.abspath(folder / os.path.expanduser(path))) for key, path in paths.items()})
