"""Frozen image encoders: which one, where its files are, and images to embeddings with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from fedsim.data.encoding.spec import EncoderSpec, Pool
from fedsim.errors import UserError

REVISIONS = {
    "facebook/dinov2-small": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
    "facebook/dinov2-base": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "facebook/dinov2-large": "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    "facebook/dinov2-giant": "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
}
"""The revisions that are meant where a grid names none."""
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder on this machine.

    Attributes:
        name: as it was given.
        revision: the hub's commit; None for a local folder.
        folder: where its files are.
    """

    name: str
    revision: str | None
    folder: Path

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights and configuration."""
        digest = hashlib.sha256()
        for path in sorted(path for pattern in _FILES for path in self.folder.glob(pattern)):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """The image processor's configuration: size, crop, mean and standard deviation."""
        found: dict[str, Any] = json.loads((self.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return found


def locate(spec: EncoderSpec) -> EncoderFiles:
    """Find an encoder's files: a local folder, the hub's cache, or the hub.

    Raises:
        UserError: it is not on this machine and cannot be downloaded, or files are missing.
    """
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        if spec.revision is not None:
            raise UserError("", f"revision {spec.revision} is given for the local folder {folder}", "remove it; a folder has no revisions")
        return _complete(EncoderFiles(str(folder), None, folder))
    revision = spec.revision or REVISIONS.get(spec.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = Path(snapshot_download(spec.name, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise UserError("", f"there is no folder '{spec.name}'", "give a folder, or a name such as facebook/dinov2-base") from error
    except Exception as error:  # any of the hub's and the network's errors
        what = f"encoder '{spec.name}' is not on this machine and cannot be downloaded ({' '.join(str(error).split())[:160]})"
        at = f" --revision {revision}" if revision else ""
        right = (
            f"run `hf download {spec.name}{at} --local-dir FOLDER` where there is a network, copy FOLDER here and give it as the encoder"
        )
        raise UserError("", what, right) from error
    return _complete(EncoderFiles(spec.name, found.name, found))


def _complete(files: EncoderFiles) -> EncoderFiles:
    for name in ("config.json", "preprocessor_config.json"):
        try:
            json.loads((files.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            what = f"encoder folder {files.folder} has no readable {name}"
            raise UserError("", what, "save model and image processor there with save_pretrained") from error
    if not any(files.folder.glob("*.safetensors")):
        what = f"encoder folder {files.folder} has no .safetensors weights"
        raise UserError("", what, "save the model with save_pretrained; pickled weights are never read")
    return files


def best_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Encoder:
    """A loaded encoder.

    Args:
        files: from :func:`locate`.
        pool: see :class:`EncoderSpec`.
        device: where the model runs; on a GPU in bfloat16 mixed precision.

    Raises:
        UserError: it is no image encoder that ``transformers`` can load.
    """

    def __init__(self, files: EncoderFiles, pool: Pool, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(files.folder)  # type: ignore[no-untyped-call]
            self.model: Any = AutoModel.from_pretrained(files.folder, use_safetensors=True).to(device).eval()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            what = f"cannot be loaded ({' '.join(str(error).split())[:200]})"
            raise UserError(f"encoder {files.name}", what, "give a vision transformer that transformers knows, such as DINOv2") from error
        self.files, self.pool, self.device = files, pool, device
        self.skipped = 1 + int(getattr(self.model.config, "num_register_tokens", 0) or 0)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's own preprocessing, float32 ``[n, 3, h, w]`` on the CPU."""
        values: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 ``[n, d]`` on the CPU.

        Raises:
            UserError: the model yields no tokens.
        """
        on_gpu = self.device != "cpu"
        mixed = torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()
        with torch.inference_mode(), mixed:
            moved = pixels.pin_memory().to(self.device, non_blocking=True) if on_gpu else pixels
            tokens = getattr(self.model(pixel_values=moved), "last_hidden_state", None)
            if tokens is None or tokens.dim() != 3:
                raise UserError(f"encoder {self.files.name}", "yields no tokens", "give a vision transformer, such as facebook/dinov2-base")
            parts = {"cls": tokens[:, :1], "mean": tokens[:, self.skipped :]}
            pooled = torch.cat([parts[name].float().mean(1) for name in self.pool.split("+")], 1)
        return pooled.cpu()
