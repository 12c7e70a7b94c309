"""Which data set: what a grid or an option says about one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.sources import medmnist
from fedsim.errors import nearest

NAMES = ("digits", "milk10k", "medmnist:<flag>", "hf:<dataset>")
"""The data sets that are known by name."""
_PATHS = ("npz", "imagefolder", "csv")


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
        for key, kinds in (("root", ("medmnist", "milk10k")), ("size", ("medmnist",)), ("remap", ("npz",))):
            if getattr(self, key) != type(self).model_fields[key].default and self.kind not in kinds:
                raise ValueError(f"'{self.display}' takes no {key}; it is for {', '.join(kinds)}")
        return self

    def _check_name(self) -> None:
        if self.name is None:
            raise ValueError(f"names no data; give {', '.join(NAMES)}, {{npz: PATH}}, {{imagefolder: PATH}} or {{csv: PATH}}")
        kind, _, rest = self.name.partition(":")
        if kind == "medmnist":
            if rest not in medmnist.flags():
                raise ValueError(f"unknown MedMNIST set '{rest}'; {nearest(rest, medmnist.flags())}")
        elif not (self.name in ("digits", "milk10k") or (kind == "hf" and rest)):
            hint = f"write {{npz: {self.name}}}" if self.name.endswith(".npz") else nearest(self.name, NAMES)
            raise ValueError(f"unknown data set '{self.name}'; {hint}")

    @property
    def kind(self) -> str:
        """The kind of source: ``npz``, ``imagefolder``, ``csv``, ``digits``, ``milk10k``, ``medmnist`` or ``hf``."""
        return next((kind for kind in _PATHS if getattr(self, kind) is not None), str(self.name).partition(":")[0])

    @property
    def path(self) -> Path | None:
        """The file or folder, where the data set is one."""
        return getattr(self, self.kind, None) if self.kind in _PATHS else None

    @property
    def display(self) -> str:
        """What tables and curves call the data set."""
        name = self.name or (self.path.stem if self.path else "")
        if self.kind == "medmnist":
            name = name.partition(":")[2] + (f"-{self.size}" if self.size != 28 else "")
        return name if self.limit is None else f"{name}[:{self.limit}]"

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"name"} if self.path else set())
        return json.dumps(fields, sort_keys=True)

    @property
    def overlap_policy(self) -> str:
        """``overlap``, or its default."""
        return self.overlap or ("keep" if self.kind in ("digits", "milk10k", "medmnist") else "error")

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with its relative paths taken from ``folder``."""
        paths = {key: path for key in (*_PATHS, "root") if (path := getattr(self, key)) is not None}
        return self.model_copy(update={key: Path(os.path.abspath(folder / os.path.expanduser(path))) for key, path in paths.items()})
