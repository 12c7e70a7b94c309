"""Describes data sets and image encoders as a grid or a command line option names them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from fedsim.data.sources.kinds import SOURCES, Source
from fedsim.errors import nearest
from fedsim.files import cache_folder

Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
}
"""The commits that are used where a grid names no revision of these models.

A grid may leave out ``facebook/``, unless there is a folder with the name that is left.
"""
EXPORTED: dict[str, dict[str, Any]] = {
    "efficientnet-lite0": {"size": 112, "mean": (0.498,) * 3, "std": (0.502,) * 3}
}
"""The preprocessing of exported networks that are known by name.

``fedsim embed --make NAME`` writes such a network to ``encoders/NAME.onnx`` in the cache.
"""


def changed(model: BaseModel) -> set[str]:
    """Return the names of the fields whose values differ from their defaults."""
    return {
        name
        for name, field in type(model).model_fields.items()
        if getattr(model, name) != field.default
    }


_PATHS = [kind for kind, source in SOURCES.items() if source.by_path]


class EncoderSpec(BaseModel):
    """An encoder turns images into embeddings: give a name, an ``.onnx`` file, or a mapping.

    Attributes:
        name: The name of a model on the Hugging Face hub (``facebook/dinov2-base``,
            ``dinov2-base``), a local folder in the hub's format, or the name of a network that
            ``fedsim embed --make`` exports. A folder in the cache's folder ``encoders`` may be
            given by its name alone.
        onnx: The file of an exported network. It takes images ``[n, 3, h, w]`` or
            ``[n, h, w, 3]``.
        size: The width and height in pixels of the images that the exported network takes. The
            shorter side of an image is scaled to this size, and the central square is cut out.
        mean: The values that are subtracted from red, green and blue in [0, 1]. The default is
            ImageNet's.
        std: The values that red, green and blue are then divided by. The default is ImageNet's.
        output: The name of the network's output that is used. The default is the first output.
        revision: A commit of the hub's repository. The default is a fixed commit for DINOv2 models
            and the newest one for other models.
        pool: How the tokens of an image become one vector: the class token (``cls``), the mean of
            the patch tokens (``mean``), or both, one after the other. A map ``[n, c, h, w]`` is
            always averaged over its pixels.
        dtype: The number format of the embeddings in the cache.
        views: The number of views of an image whose embeddings are averaged. The first view is the
            image itself; the others are fixed crops, of which about half are mirrored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    onnx: Path | None = None
    size: int = Field(default=224, ge=1, le=4096)
    mean: Channels = (0.485, 0.456, 0.406)
    std: tuple[Scale, Scale, Scale] = (0.229, 0.224, 0.225)
    output: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    pool: Literal["cls", "mean", "cls+mean"] = "cls"
    dtype: Literal["float32", "float16"] = "float32"
    views: int = Field(default=1, ge=1, le=64, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _read_bare_name(cls, value: Any) -> Any:
        """Turn a text into a mapping, and a name that stands for an ``.onnx`` file as ``onnx``."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or "onnx" in value:
            return value
        name = value.get("name")
        if not isinstance(name, str):
            return value
        options = {key: item for key, item in value.items() if key != "name"}
        if name in EXPORTED:
            path = cache_folder() / "encoders" / f"{name}.onnx"
            return {**EXPORTED[name], **options, "onnx": path}
        if name.endswith(".onnx"):
            return {**options, "onnx": name}
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        """Refuse a spec that names no encoder or two, and keys of the other kind of encoder."""
        if not (self.name or self.onnx):
            raise ValueError("names no encoder; give name: NAME or onnx: FILE")
        if self.name and self.onnx:
            raise ValueError("names two encoders; give name: or onnx:, not both")
        if self.onnx:
            encoder = "a network of an onnx file"
            refused = {"revision"}
        else:
            encoder = "a named encoder"
            refused = {"size", "mean", "std", "output"}
        wrong_keys = sorted(refused & changed(self))
        if wrong_keys:
            raise ValueError(f"{encoder} takes no {wrong_keys[0]}; remove it")
        return self

    @property
    def display(self) -> str:
        """The name in tables: the last part of the encoder's name, with pool, dtype and views."""
        if self.onnx:
            words = [self.onnx.stem]
        else:
            words = [Path(str(self.name)).name]
        if self.pool != "cls":
            words.append(self.pool)
        if self.dtype != "float32":
            words.append(self.dtype)
        if self.views > 1:
            words.append(f"{self.views} views")
        return ", ".join(words)

    def within(self, folder: Path) -> EncoderSpec:
        """Return the same encoder with its relative path resolved against ``folder``."""
        path = self.onnx or Path(str(self.name))
        local = (folder / path.expanduser()).absolute()
        if self.onnx:
            return self.model_copy(update={"onnx": local})
        if local.is_dir():
            return self.model_copy(update={"name": str(local)})
        return self


class SplitSpec(BaseModel):
    """A split chooses the test rows in place of the split that the data set has.

    Attributes:
        by: The column whose values are divided, such as the patient or the lesion. A stratified
            quarter of its values is for testing, with all their rows. The choice is fixed and
            public.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str = Field(min_length=1)


class DatasetSpec(BaseModel):
    """A data set: give a known name (``digits``, ``medmnist:organsmnist``) or a mapping.

    A mapping names a file or folder, as in ``{imagefolder: PATH}``. The text ``imagefolder:PATH``
    means the same.

    Attributes:
        name: The name of a known data set. Beside a path it is the name in tables, and the default
            is the path's stem.
        npz: A file with arrays ``x`` [n, d], ``y`` [n] and ``split`` [n] (0 = train, 2 = test).
            Further arrays [n] are columns.
        npy: A folder with the same arrays, one per file: ``x.npy``, ``y.npy``, ``split.npy``. It
            is for data that hardly fit into memory.
        imagefolder: A folder of images: ``<class>/*``, or ``train/<class>/*`` and
            ``test/<class>/*``.
        csv: A table of images with the columns ``path`` and ``label``, and optionally ``split`` and
            further columns.
        root: The folder that holds the files of a known data set. The default is the set's own
            folder.
        size: The width and height of MedMNIST's images in pixels.
        remap: Whether the labels of an ``npz`` or ``npy`` are numbered 0 .. C-1 in sorted order.
        domains: Whether the top folders of an ``imagefolder`` are domains (sites, scanners,
            styles), each with the folders of the classes inside. They become the column
            ``domain``. By default they are not, but ``true`` or ``false`` must be given where
            several top folders hold the same folders.
        limit: The largest number of training rows to keep, and of test images if the data set
            holds images. The choice is fixed and stratified. None keeps all rows.
        overlap: What happens to training rows that are equal to a test row: ``error`` stops,
            ``drop`` removes them from training, and ``keep`` keeps them. The default is ``keep``
            for data sets that fedsim knows by name, and ``error`` for data that a path names.
        skip_bad: Whether images that cannot be decoded are left out.
        split: How test images are chosen, in place of the data set's own split.
        encoder: The encoder of the images. The default is every encoder of the grid.
        licence: The licence of the data, in words. The default is the known licence of the set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    npy: Path | None = None
    imagefolder: Path | None = None
    csv: Path | None = None
    root: Path | None = None
    size: Literal[28, 64, 128, 224] = 28
    remap: bool = False
    domains: bool | None = None
    limit: int | None = Field(default=None, gt=0)
    overlap: Literal["error", "drop", "keep"] | None = None
    skip_bad: bool = False
    split: SplitSpec | None = None
    encoder: EncoderSpec | None = None
    licence: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _read_bare_text(cls, value: Any) -> Any:
        """Turn a text such as ``digits`` or ``npz:FILE`` into a mapping."""
        if not isinstance(value, str):
            return value
        kind, _, path = value.partition(":")
        if kind in _PATHS and path:
            return {kind: path}
        return {"name": value}

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        """Refuse several sources, an unknown name, and keys that the data set does not take."""
        paths = self._paths()
        if len(paths) > 1:
            raise ValueError(f"names {' and '.join(paths)}; give one of them")
        if not paths:
            self._check_name()
        for key in sorted(changed(self)):
            kinds = [kind for kind, source in SOURCES.items() if key in source.keys]
            if kinds and self.kind not in kinds:
                listed = ", ".join(sorted(kinds))
                raise ValueError(f"'{self.display}' takes no {key}; it is for {listed}")
            if key in ("split", "encoder", "skip_bad") and not self.has_images:
                raise ValueError(
                    f"'{self.title}' holds embeddings and takes no {key}, which is for "
                    "images; remove it"
                )
        return self

    def _paths(self) -> dict[str, Path]:
        """Return the paths of the data set, each under its key."""
        return {key: value for key, value in self if key in _PATHS and value is not None}

    def _check_name(self) -> None:
        """Refuse a missing or unknown name, with a hint at the right one."""
        known = [
            f"{kind}:{source.argument}" if source.argument else kind
            for kind, source in SOURCES.items()
            if not source.by_path
        ]
        if self.name is None:
            paths = " or ".join(f"{{{kind}: PATH}}" for kind in _PATHS)
            raise ValueError(f"names no data; give {', '.join(known)}, or {paths}")
        kind, colon, argument = self.name.partition(":")
        source = SOURCES.get(kind)
        # A colon and a text follow the name of a kind that takes an argument, and no other.
        if source and not source.by_path and bool(source.argument) == bool(colon) == bool(argument):
            return
        if self.name.endswith(".npy"):
            raise ValueError(
                f"unknown data set '{self.name}': an .npy file holds one array; give "
                "{npz: FILE} with an .npz file of x, y and split, or {npy: FOLDER}"
            )
        if self.name.endswith(".npz"):
            hint = f"write {{npz: {self.name}}}"
        else:
            hint = nearest(self.name, known)
        own = ", ".join(_PATHS)
        raise ValueError(f"unknown data set '{self.name}'; {hint}, or your own data by {own}")

    @property
    def kind(self) -> str:
        """The kind of source: the key of the path, or the first word of the name."""
        paths = self._paths()
        if paths:
            return next(iter(paths))
        return str(self.name).partition(":")[0]

    @property
    def source(self) -> Source:
        """The facts about this kind of data set."""
        return SOURCES[self.kind]

    @property
    def argument(self) -> str:
        """The part of a known name after the colon: ``organsmnist`` of ``medmnist:organsmnist``."""
        return str(self.name).partition(":")[2]

    @property
    def path(self) -> Path | None:
        """The file or folder of the data set; None if it is given by a name."""
        return self._paths().get(self.kind)

    @property
    def terms(self) -> tuple[str, str]:
        """The licence of the data and the page they come from, each empty if it is not known."""
        licence = self.source.licence
        if self.name == "medmnist:dermamnist":
            licence = "CC BY-NC 4.0"
        return self.licence or licence, self.source.page

    @property
    def display(self) -> str:
        """The name in tables and curves, with the encoder if there is one."""
        if self.encoder is None:
            return self.title
        return f"{self.title} ({self.encoder.display})"

    @property
    def title(self) -> str:
        """The name of the data set without its encoder."""
        if self.kind == "medmnist":
            title = self.argument
            if self.size != 28:
                title += f"-{self.size}"
        elif self.path:
            title = self.name or self.path.stem
        else:
            title = str(self.name)
        if self.limit is None:
            return title
        return f"{title}[:{self.limit}]"

    @property
    def has_images(self) -> bool:
        """Whether the data set holds images, which an encoder has to embed."""
        return self.source.images

    @property
    def overlap_policy(self) -> str:
        """The value of ``overlap``, or its default for this kind of data set."""
        if self.overlap:
            return self.overlap
        if self.path:
            return "error"
        return "keep"

    def encoded_by(self, encoders: Sequence[EncoderSpec]) -> tuple[DatasetSpec, ...]:
        """Return the data set once per encoder; unchanged if it has one, or no images."""
        if self.encoder is not None or not self.has_images or not encoders:
            return (self,)
        return tuple(self.model_copy(update={"encoder": encoder}) for encoder in encoders)

    @property
    def key(self) -> str:
        """A text that two specs share only if they mean the same source, rows and encoder."""
        without_meaning = {"licence"}
        if self.path:
            without_meaning.add("name")
        if not self.domains:  # false chooses what would be guessed, so the rows are the same
            without_meaning.add("domains")
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude=without_meaning)
        return json.dumps(fields, sort_keys=True)

    def within(self, folder: Path) -> DatasetSpec:
        """Return the same data set with all relative paths resolved against ``folder``."""
        update: dict[str, Any] = {
            name: Path(os.path.abspath(folder / path.expanduser()))
            for name, path in self
            if isinstance(path, Path)
        }
        if self.encoder:
            update["encoder"] = self.encoder.within(folder)
        return self.model_copy(update=update)
