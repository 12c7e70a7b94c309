"""Frozen image encoders: where one's files are, and images to embeddings with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from fedsim.data.encoding.spec import REVISIONS, EncoderSpec
from fedsim.data.encoding.views import views_of
from fedsim.errors import UserError, not_installed
from fedsim.files import cache_folder

_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
_UNUSED = re.compile(r"pooler|mask_token|classifier")
"""Weights that tokens do not depend on."""


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder on this machine.

    Attributes:
        spec: which one.
        revision: the hub's commit; None for local files.
        paths: its files, weights and configuration.
    """

    spec: EncoderSpec
    revision: str | None
    paths: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.paths[0].parent

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights and configuration."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """What images go through first: size, crop, mean and standard deviation."""
        if self.spec.onnx:
            return {
                "size": self.spec.size,
                "image_mean": list(self.spec.mean),
                "image_std": list(self.spec.std),
                "output": self.spec.output,
            }
        held: dict[str, Any] = json.loads((self.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return held

    def load(self, device: str) -> ImageEncoder:
        """The encoder, ready to compute.

        Args:
            device: ``cpu`` or ``cuda``, where it runs in bfloat16 mixed precision.

        Raises:
            UserError: it cannot be loaded, or this processor lacks its dtype.
        """
        if self.spec.onnx:
            return OnnxEncoder(self, device)
        return TokenEncoder(self, device)


def locate(spec: EncoderSpec) -> EncoderFiles:
    """Find an encoder's files: a local one, the hub's cache, or the hub.

    Raises:
        UserError: it is not on this machine and cannot be downloaded, or files are missing.
    """
    if spec.onnx:
        if not os.path.isfile(spec.onnx):
            hint = "give the path of an exported network; benchmarks/encoders.py of a checkout makes those that are known by name"
            raise UserError(str(spec.onnx), "there is no such file", hint)
        return EncoderFiles(spec, None, (spec.onnx, *sorted(spec.onnx.parent.glob(f"{spec.onnx.name}*data"))))
    name = str(spec.name)
    folder = next((at for at in (Path(name).expanduser(), cache_folder() / "encoders" / name) if at.is_dir()), None)
    if folder is not None:
        if spec.revision is not None:
            raise UserError("", f"revision {spec.revision} is given for the local folder {folder}", "remove it; a folder has no revisions")
        return _complete(spec, None, folder)
    name = f"facebook/{name}" if f"facebook/{name}" in REVISIONS else name
    revision = spec.revision or REVISIONS.get(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except HFValidationError as error:
        raise UserError("", f"there is no folder '{name}'", "give a folder, or a name such as facebook/dinov2-base") from error
    except Exception as error:  # any of the hub's and the network's errors
        what = f"encoder '{name}' is not on this machine and cannot be downloaded ({' '.join(str(error).split())[:160]})"
        at = f" --revision {revision}" if revision else ""
        hint = f"run `hf download {name}{at} --local-dir FOLDER` where there is a network, copy FOLDER here and give it as the encoder"
        raise UserError("", what, hint) from error
    return _complete(spec, folder.name, folder)


def _complete(spec: EncoderSpec, revision: str | None, folder: Path) -> EncoderFiles:
    for name in ("config.json", "preprocessor_config.json"):
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            what = f"encoder folder {folder} has no readable {name}"
            raise UserError("", what, "save model and image processor there with save_pretrained") from error
    if not any(folder.glob("*.safetensors")):
        what = f"encoder folder {folder} has no .safetensors weights"
        raise UserError("", what, "save the model with save_pretrained; pickled weights are never read")
    return EncoderFiles(spec, revision, tuple(sorted(path for pattern in _FILES for path in folder.glob(pattern))))


def best_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class ImageEncoder(ABC):
    """A loaded encoder.

    Args:
        files: where it was loaded from.
        device: where it computes.
    """

    def __init__(self, files: EncoderFiles, device: str) -> None:
        self.files, self.device = files, device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What the model is given, float32 ``[n * views, 3, h, w]`` on the CPU, the views of an image side by side."""
        return self.preprocessed([view for image in images for view in views_of(image, self.files.spec.views)])

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 ``[n, d]`` on the CPU: the means over views, before any scaling to unit norm.

        Raises:
            UserError: the model yields neither tokens, maps nor vectors.
        """
        with torch.inference_mode():
            rows, views = self.pooled(self.output(pixels)), self.files.spec.views
        return rows if views == 1 else rows.reshape(-1, views, rows.shape[1]).mean(1)

    def pooled(self, output: Tensor | None) -> Tensor:
        """One vector an image from the model's output: tokens ``[n, t, d]``, maps ``[n, d, h, w]`` or vectors ``[n, d]``."""
        if output is None or output.dim() not in (2, 3, 4):
            what = f"encoder {self.files.spec.display}"
            raise UserError(what, "yields no tokens", "give a vision transformer, such as facebook/dinov2-base, or an onnx file")
        if output.dim() != 3:
            return output.float().cpu() if output.dim() == 2 else output.float().mean((2, 3)).cpu()
        parts = {"cls": output[:, :1], "mean": output[:, self.leading :]}
        return torch.cat([parts[name].float().mean(1) for name in self.files.spec.pool.split("+")], 1).cpu()

    leading = 1
    """Tokens that are no patches: the class token and registers."""

    @abstractmethod
    def preprocessed(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as the model takes them."""

    @abstractmethod
    def output(self, pixels: Tensor) -> Tensor | None:
        """What the model makes of them; None: nothing that is known."""


class TokenEncoder(ImageEncoder):
    """A vision transformer that ``transformers`` loads, with its own preprocessing."""

    def __init__(self, files: EncoderFiles, device: str) -> None:
        super().__init__(files, device)
        if files.spec.dtype == "bfloat16" and device == "cpu" and not has_bfloat16():
            what = "this processor computes in bfloat16 more slowly than in float32"
            raise UserError(f"encoder {files.spec.display}", what, "give dtype: float32, or float16 for files of half the size")
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(files.folder, trust_remote_code=False)  # type: ignore[no-untyped-call]
            options = {"use_safetensors": True, "output_loading_info": True, "trust_remote_code": False}
            model, report = AutoModel.from_pretrained(files.folder, **options)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _unloaded(files, " ".join(str(error).split())[:200]) from error
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(name for name in report["missing_keys"] if not _UNUSED.search(name)):
            raise _unloaded(files, f"there are no weights of {missing[0]}")
        self.narrow = files.spec.dtype == "bfloat16" and device == "cpu"
        self.model: Any = model.to(device, torch.bfloat16 if self.narrow else None).eval()
        self.leading = 1 + int(getattr(self.model.config, "num_register_tokens", 0) or 0)

    def preprocessed(self, images: Sequence[Image.Image]) -> Tensor:
        """See :class:`ImageEncoder`."""
        values: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def output(self, pixels: Tensor) -> Tensor | None:
        """See :class:`ImageEncoder`."""
        on_gpu = self.device != "cpu"
        moved = pixels.pin_memory().to(self.device, non_blocking=True) if on_gpu else pixels.bfloat16() if self.narrow else pixels
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            tokens = getattr(self.model(pixel_values=moved), "last_hidden_state", None)
        return tokens if tokens is not None and tokens.dim() == 3 else None


class OnnxEncoder(ImageEncoder):
    """An exported network of one input, images, whose output is a vector, a map or tokens an image; runs in ``onnxruntime``."""

    def __init__(self, files: EncoderFiles, device: str) -> None:
        super().__init__(files, device)
        where = str(files.spec.onnx)
        try:
            import onnxruntime
        except ImportError as error:
            raise not_installed(where, "onnxruntime", extra="onnx") from error
        from torchvision.transforms import v2

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        wanted = ["CUDAExecutionProvider"] * (device != "cpu") + ["CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session: Any = onnxruntime.InferenceSession(where, options, providers=providers)
        except Exception as error:  # any of the runtime's errors
            hint = "give a network that onnxruntime can run"
            raise UserError(where, f"cannot be loaded ({' '.join(str(error).split())[:200]})", hint) from error
        (self.input, *more), outputs = self.session.get_inputs(), [held.name for held in self.session.get_outputs()]
        if more or len(self.input.shape) != 4 or self.input.type not in ("tensor(float)", "tensor(float16)"):
            what = f"takes {', '.join(f'{held.name} {held.type} {held.shape}' for held in (self.input, *more))}"
            raise UserError(where, what, "export it with one input of floating-point images, [n, 3, h, w] or [n, h, w, 3]")
        self.name = files.spec.output or outputs[0]
        if self.name not in outputs:
            raise UserError(where, f"has no output '{self.name}'", f"known: {', '.join(outputs)}")
        self.last = self.input.shape[1] != 3 and self.input.shape[3] == 3
        size, whole = files.spec.size, v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        shrink = [v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(size)]
        self.transform = v2.Compose([*shrink, whole, v2.Normalize(list(files.spec.mean), list(files.spec.std))])

    def preprocessed(self, images: Sequence[Image.Image]) -> Tensor:
        """See :class:`ImageEncoder`."""
        return torch.stack([self.transform(image) for image in images])

    def output(self, pixels: Tensor) -> Tensor:
        """See :class:`ImageEncoder`; a network of a fixed batch is given so many images at a time, the last ones filled up.

        Raises:
            UserError: the network refuses the images.
        """
        values = pixels.permute(0, 2, 3, 1) if self.last else pixels
        given = values.numpy().astype(np.float16 if self.input.type == "tensor(float16)" else np.float32)
        batch = self.input.shape[0] if isinstance(self.input.shape[0], int) else len(given)
        filled = np.concatenate([given, np.repeat(given[-1:], -len(given) % batch, axis=0)])
        try:
            parts = [self.session.run([self.name], {self.input.name: part})[0] for part in np.split(filled, len(filled) // batch)]
        except Exception as error:  # any of the runtime's errors
            what = f"refuses images of {self.files.spec.size} pixels ({' '.join(str(error).split())[:200]})"
            raise UserError(str(self.files.spec.onnx), what, f"give size: as the network's input {self.input.shape} has it") from error
        return torch.from_numpy(np.concatenate(parts)[: len(given)])


def _unloaded(files: EncoderFiles, why: str) -> UserError:
    hint = "give a vision transformer that transformers knows, such as DINOv2"
    return UserError(f"encoder {files.spec.name}", f"cannot be loaded ({why})", hint)


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16, as Linux describes it."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
