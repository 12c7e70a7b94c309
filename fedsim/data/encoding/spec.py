"""Which image encoder: what a grid or an option says about one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from fedsim.files import cache_folder

Pool = Literal["cls", "mean", "cls+mean"]
Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
}
"""The revisions that are meant where a grid names none; ``facebook/`` may be left out where no folder has the rest as its name."""

EXPORTED: dict[str, dict[str, Any]] = {"efficientnet-lite0": {"size": 112, "mean": (0.498,) * 3, "std": (0.502,) * 3}}
"""Networks known by name: ``encoders/NAME.onnx`` in the cache, which ``benchmarks/encoders.py`` makes, and what images go through."""


class EncoderSpec(BaseModel):
    """What turns images into embeddings: a name, the path of an ``.onnx`` file, or a mapping.

    Attributes:
        name: a model of the Hugging Face hub (``facebook/dinov2-base``, ``dinov2-base``) or a local folder in its format, of which those in
            ``encoders`` of the cache need no path; or one of ``EXPORTED``.
        onnx: an exported network, whose input are images ``[n, 3, h, w]`` or ``[n, h, w, 3]``.
        size: of the network's images: the shorter side is scaled to so many pixels, and the central square is cut out.
        mean: subtracted from the network's red, green and blue values in [0, 1]; default: ImageNet's.
        std: by which they are divided then; default: ImageNet's.
        output: which output of the network; default: the first.
        revision: a commit of the hub's repository; default: the pinned one of a DINOv2 model, the newest of another.
        pool: of tokens: the class token, the mean of the patch tokens, or both side by side. A map ``[n, c, h, w]`` is averaged.
        dtype: of the stored embeddings; ``bfloat16``: the model computes in it, which is faster, and float32 is stored.
        views: an embedding is the mean over so many fixed flips and crops of its image; the first is the image as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    onnx: Path | None = None
    size: int = Field(default=224, ge=1, le=4096)
    mean: Channels = (0.485, 0.456, 0.406)
    std: Channels = (0.229, 0.224, 0.225)
    output: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    pool: Pool = "cls"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    views: int = Field(default=1, ge=1, le=64, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        given = {"name": given} if isinstance(given, str) else given
        name = given.get("name") if isinstance(given, dict) else None
        if isinstance(name, str) and "onnx" not in given and (name in EXPORTED or name.endswith(".onnx")):
            path = cache_folder() / "encoders" / f"{name}.onnx" if name in EXPORTED else name
            return {**EXPORTED.get(name, {}), **{key: value for key, value in given.items() if key != "name"}, "onnx": path}
        return given

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.name is None) == (self.onnx is None):
            raise ValueError("names no encoder or two; give a name, or {onnx: PATH}")
        kind, wrong = ("a network of an onnx file", {"revision"}) if self.onnx else ("a named encoder", {"size", "mean", "std", "output"})
        for name in sorted(wrong):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{kind} takes no {name}; remove it")
        if self.onnx and self.dtype == "bfloat16":
            raise ValueError("a network of an onnx file computes as it was exported; give dtype: float32 or float16")
        if min(self.std) <= 0:
            raise ValueError("std has a value that is not positive; give three numbers > 0")
        return self

    @property
    def display(self) -> str:
        """What tables call it: the last part of its name, and what is not the default."""
        name = self.onnx.stem if self.onnx else Path(str(self.name)).name
        more = [self.pool] * (self.pool != "cls") + [self.dtype] * (self.dtype != "float32") + [f"{self.views} views"] * (self.views > 1)
        return ", ".join([name, *more])

    @property
    def stored(self) -> str:
        """The dtype of files of embeddings."""
        return "float16" if self.dtype == "float16" else "float32"

    def within(self, folder: Path) -> EncoderSpec:
        """The same encoder, the relative path of its file or folder taken from ``folder``."""
        local = (folder / (self.onnx or Path(str(self.name))).expanduser()).absolute()
        if self.onnx:
            return self.model_copy(update={"onnx": local})
        return self.model_copy(update={"name": str(local)}) if local.is_dir() else self
