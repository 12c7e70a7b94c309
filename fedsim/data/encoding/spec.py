"""Which image encoder: what a grid or an option says about one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pool = Literal["cls", "mean", "cls+mean"]


class EncoderSpec(BaseModel):
    """What turns images into embeddings: a name, or a mapping.

    Attributes:
        name: a model of the Hugging Face hub (``facebook/dinov2-base``) or a local folder in its format.
        revision: a commit of the hub's repository; default: the pinned one of a DINOv2 model, the newest of another.
        pool: the class token, the mean of the patch tokens, or both side by side.
        dtype: of the stored embeddings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    pool: Pool = "cls"
    dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def within(self, folder: Path) -> EncoderSpec:
        """The same encoder, a local folder's relative path taken from ``folder``."""
        local = (folder / Path(self.name).expanduser()).absolute()
        return self.model_copy(update={"name": str(local)}) if local.is_dir() else self
