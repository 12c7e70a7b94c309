"""Which data set, and which encoder of its images: what a grid or an option says about them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

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
"""The revisions that are meant where a grid names none; ``facebook/`` may be left out where no
folder has the rest as its name.
"""
EXPORTED: dict[str, dict[str, Any]] = {
    "efficientnet-lite0": {"size": 112, "mean": (0.498,) * 3, "std": (0.502,) * 3}
}
"""Networks known by name: ``encoders/NAME.onnx`` in the cache, which ``fedsim embed --make NAME``
makes, and what images go through.
"""
PATHS = ("npz", "imagefolder", "csv")
"""The sources that a path names."""
IN_FOLDERS = {
    "milk10k": ("per image: copyright_license", "https://challenge.isic-archive.com/data/#milk10k"),
    "ham10000": ("CC BY-NC 4.0", "https://doi.org/10.7910/DVN/DBW86T"),
    "chest-xray": ("CC BY 4.0", "https://data.mendeley.com/datasets/rscbjbr9sj"),
}
"""Sets that a user downloads into a folder: their licence, and where they are to be had."""
ARGUMENTS = {"digits": "", **dict.fromkeys(IN_FOLDERS, ""), "medmnist": "<flag>"}
"""The sources that a name names, and what follows it after a colon."""
_OWN = {
    "root": ("medmnist", *IN_FOLDERS),
    "size": ("medmnist",),
    "remap": ("npz",),
    "domains": ("imagefolder",),
}
"""Keys that are not every source's, and whose they are."""


def changed(model: BaseModel) -> set[str]:
    """The fields whose values are not the defaults."""
    return {
        name
        for name, field in type(model).model_fields.items()
        if getattr(model, name) != field.default
    }


class EncoderSpec(BaseModel):
    """What turns images into embeddings: a name, the path of an ``.onnx`` file, or a mapping.

    Attributes:
        name: a model of the Hugging Face hub (``facebook/dinov2-base``, ``dinov2-base``) or a local
            folder in its format, of which those in ``encoders`` of the cache need no path; or one
            of ``EXPORTED``.
        onnx: an exported network, whose input are images ``[n, 3, h, w]`` or ``[n, h, w, 3]``.
        size: of the network's images: the shorter side is scaled to so many pixels, and the central
            square is cut out.
        mean: subtracted from the network's red, green and blue values in [0, 1]; default:
            ImageNet's.
        std: by which they are divided then; default: ImageNet's.
        output: which output of the network; default: the first.
        revision: a commit of the hub's repository; default: the pinned one of a DINOv2 model, the
            newest of another.
        pool: of tokens: the class token, the mean of the patch tokens, or both side by side. A map
            ``[n, c, h, w]`` is averaged.
        dtype: of the embeddings in the cache.
        views: an embedding is the mean over so many fixed flips and crops of its image; the first
            is the image as it is.
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
    def _bare_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if isinstance(given, dict):
            name = given.get("name")
        else:
            name = None
        if (
            isinstance(name, str)
            and "onnx" not in given
            and (name in EXPORTED or name.endswith(".onnx"))
        ):
            if name in EXPORTED:
                path: str | Path = cache_folder() / "encoders" / f"{name}.onnx"
            else:
                path = name
            return {
                **EXPORTED.get(name, {}),
                **{key: value for key, value in given.items() if key != "name"},
                "onnx": path,
            }
        return given

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.name is None) == (self.onnx is None):
            raise ValueError("names no encoder or two; give a name, or {onnx: PATH}")
        if self.onnx:
            wrong = {"revision"}
        else:
            wrong = {"size", "mean", "std", "output"}
        if given := sorted(wrong & changed(self)):
            raise ValueError(
                f"{'a network of an onnx file' if self.onnx else 'a named encoder'} takes no "
                f"{given[0]}; remove it"
            )
        return self

    @property
    def display(self) -> str:
        """What tables call it: the last part of its name, and what is not the default."""
        if self.onnx:
            name = self.onnx.stem
        else:
            name = Path(str(self.name)).name
        more = (
            [self.pool] * (self.pool != "cls")
            + [self.dtype] * (self.dtype != "float32")
            + [f"{self.views} views"] * (self.views > 1)
        )
        return ", ".join([name, *more])

    def within(self, folder: Path) -> EncoderSpec:
        """The same encoder, the relative path of its file or folder taken from ``folder``."""
        local = (folder / (self.onnx or Path(str(self.name))).expanduser()).absolute()
        if self.onnx:
            return self.model_copy(update={"onnx": local})
        if local.is_dir():
            return self.model_copy(update={"name": str(local)})
        return self


class SplitSpec(BaseModel):
    """Which rows are for testing, where that is not the source's choice.

    Attributes:
        by: a column (a patient's, a lesion's): a fixed, public, stratified quarter of its values is
            for testing, with all their rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str = Field(min_length=1)


class DatasetSpec(BaseModel):
    """Which data set: a known name (``digits``, ``medmnist:organsmnist``), or a mapping
    ``{imagefolder: PATH}``.

    Attributes:
        name: a known data set's name; with a path, what tables call it (default: the path's stem).
        npz: a file with arrays ``x`` [n, d], ``y`` [n], ``split`` [n] (0 = train, 2 = test);
            further arrays [n] are columns.
        imagefolder: a folder of images: ``<class>/*``, or ``train/<class>/*`` and
            ``test/<class>/*``.
        csv: a table of images with the columns ``path`` and ``label``; ``split`` and further
            columns if it has them.
        root: of a known set, the folder that holds its files; default: the set's own.
        size: of MedMNIST's sets, pixels.
        remap: of an ``npz`` file: number the labels 0 .. C-1 in sorted order.
        domains: of an ``imagefolder``: the folders at the top are domains (sites, scanners,
            styles), with the classes' folders in each; the column ``domain``. Where folders at the
            top hold the same folders, ``true`` or ``false`` has to be given.
        limit: keep at most so many training rows, a fixed stratified choice (of images also at most
            so many test rows); None keeps all.
        overlap: what to do with training rows that are test rows too: ``error``, ``drop`` them from
            training, or ``keep`` them; default: ``keep`` for data sets with a published split,
            ``error`` otherwise.
        skip_bad: leave out images that cannot be decoded.
        split: of images, in place of the source's own.
        encoder: what turns the images into embeddings; default: each of the grid's.
        licence: of the data, in words; default: what is known of the set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    npz: Path | None = None
    imagefolder: Path | None = None
    csv: Path | None = None
    root: Path | None = None
    size: Literal[28, 64, 128, 224] = 28
    remap: bool = False
    domains: bool = False
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
        if kind in PATHS and path:
            return {kind: path}
        return {"name": given}

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        paths = [kind for kind in PATHS if getattr(self, kind) is not None]
        if len(paths) > 1:
            raise ValueError(f"names {' and '.join(paths)}; give one of them")
        if not paths:
            self._check_name()
        for key in sorted(changed(self) & _OWN.keys()):
            if self.kind not in _OWN[key]:
                raise ValueError(
                    f"'{self.display}' takes no {key}; it is for {', '.join(sorted(_OWN[key]))}"
                )
        if not self.has_images and (
            given := "split" if self.split else "encoder" if self.encoder else None
        ):
            raise ValueError(
                f"'{self.display}' holds embeddings and takes no {given}, which is for "
                "images; remove it"
            )
        return self

    def _check_name(self) -> None:
        known = [f"{kind}:{argument}" if argument else kind for kind, argument in ARGUMENTS.items()]
        if self.name is None:
            raise ValueError(
                f"names no data; give {', '.join(known)}, or "
                f"{' or '.join(f'{{{kind}: PATH}}' for kind in PATHS)}"
            )
        kind, colon, argument = self.name.partition(":")
        if (
            kind not in ARGUMENTS
            or bool(colon) != bool(ARGUMENTS[kind])
            or bool(colon) != bool(argument)
        ):
            if self.name.endswith(".npy"):
                raise ValueError(
                    f"unknown data set '{self.name}': an .npy file holds one array; give "
                    "{npz: FILE} with an .npz file of x, y and split"
                )
            if self.name.endswith(".npz"):
                hint = f"write {{npz: {self.name}}}"
            else:
                hint = nearest(self.name, known)
            raise ValueError(
                f"unknown data set '{self.name}'; {hint}, or your own: {', '.join(PATHS)}"
            )

    @property
    def kind(self) -> str:
        """The source: the key of its path, or the first word of its name."""
        return next(
            (kind for kind in PATHS if getattr(self, kind) is not None),
            str(self.name).partition(":")[0],
        )

    @property
    def argument(self) -> str:
        """What follows the source's word, where the data set is known by name: ``organsmnist`` of
        ``medmnist:organsmnist``.
        """
        if self.kind in PATHS:
            return ""
        return str(self.name).partition(":")[2]

    @property
    def path(self) -> Path | None:
        """The file or folder, where the data set is one."""
        if self.kind not in PATHS:
            return None
        path: Path | None = getattr(self, self.kind)
        return path

    @property
    def terms(self) -> tuple[str, str]:
        """The licence of the data, in words, and where they come from; empty where that is not
        known.
        """
        medmnist = (
            "CC BY-NC 4.0" if self.argument == "dermamnist" else "CC BY 4.0",
            "MedMNIST, Zenodo",
        )
        known = {"digits": ("CC BY 4.0", "scikit-learn, UCI"), "medmnist": medmnist, **IN_FOLDERS}
        licence, source = known.get(self.kind, ("", ""))
        return self.licence or licence, source

    @property
    def display(self) -> str:
        """What tables and curves call the data set: with its encoder, if it has one."""
        if self.encoder is None:
            return self.title
        return f"{self.title} ({self.encoder.display})"

    @property
    def title(self) -> str:
        """What the data set is called, whatever embeds it."""
        name = self.name or (self.path.stem if self.path else "")
        if self.kind == "medmnist":
            name = self.argument + (f"-{self.size}" if self.size != 28 else "")
        if self.limit is None:
            return name
        return f"{name}[:{self.limit}]"

    @property
    def has_images(self) -> bool:
        """Whether an encoder embeds the data set."""
        return self.kind not in ("npz", "digits")

    @property
    def says_domains(self) -> bool:
        """Whether ``domains`` was given, be it false, so that nobody has to guess."""
        return "domains" in self.model_fields_set

    @property
    def overlap_policy(self) -> str:
        """``overlap``, or its default."""
        return self.overlap or ("error" if self.kind in PATHS else "keep")

    def encoded_by(self, encoders: Sequence[EncoderSpec]) -> tuple[DatasetSpec, ...]:
        """The data set with each encoder; itself where it has one, or holds no images."""
        if self.encoder is not None or not self.has_images or not encoders:
            return (self,)
        return tuple(self.model_copy(update={"encoder": encoder}) for encoder in encoders)

    @property
    def key(self) -> str:
        """A text that two specs share exactly when they mean the same source and the same rows."""
        fields = self.model_dump(
            mode="json",
            exclude_defaults=True,
            exclude={"licence"} | ({"name"} if self.path else set()),
        )
        return json.dumps(fields, sort_keys=True)

    def within(self, folder: Path) -> DatasetSpec:
        """The same data set with its relative paths, and its encoder's, taken from ``folder``."""
        paths = {name: path for name, path in self if isinstance(path, Path)}
        update: dict[str, Any] = {
            name: Path(os.path.abspath(folder / path.expanduser())) for name, path in paths.items()
        }
        return self.model_copy(
            update=update | ({"encoder": self.encoder.within(folder)} if self.encoder else {})
        )
