"""Exported networks (``.onnx``) as encoders, through ``onnxruntime`` (extra ``onnx``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsim.data.encoding.encoder import EncoderFiles, ImageEncoder
from fedsim.errors import UserError


class OnnxEncoder(ImageEncoder):
    """A network of one input, images, whose output is a vector, a map or tokens an image."""

    def __init__(self, files: EncoderFiles, device: str) -> None:
        super().__init__(files, device)
        where = str(files.spec.onnx)
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(where, "the package 'onnxruntime' is not installed", "pip install 'fedsim[onnx]'") from error
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
