from pathlib import Path

import numpy as np
import pytest
from pictures import picture

from fedsim.data.encoder import ImageEncoder, locate
from fedsim.data.spec import EncoderSpec
from fedsim.errors import UserError

onnx = pytest.importorskip("onnx", reason="onnx, which writes the network, is not installed")
pytest.importorskip(
    "onnxruntime", reason="onnxruntime, which runs it, is not installed (extra onnx)"
)
PICTURES = [picture(n, size=40) for n in range(5)]


def export(path: Path) -> Path:
    """A network of one convolution, with its mean ``vector`` as output."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["images", "w"], ["map"], strides=[4, 4]),
        onnx.helper.make_node("ReduceMean", ["map"], ["vector"], axes=[2, 3], keepdims=0),
    ]
    images = onnx.helper.make_tensor_value_info("images", 1, ("n", 3, 16, 16))
    vector = onnx.helper.make_tensor_value_info("vector", 1, ["n", 4])
    graph = onnx.helper.make_graph(
        nodes, "tiny", [images], [vector], [onnx.numpy_helper.from_array(weights, "w")]
    )
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
        ),
        path,
    )
    return path


def embedded(path, **more):
    made = ImageEncoder(locate(EncoderSpec(**{"onnx": path, "size": 16, **more})), "cpu")
    return made.embed(made.pixels(PICTURES)).numpy()


def test_an_exported_network_embeds_scaled_and_cropped_images(tmp_path):
    path = export(tmp_path / "tiny.onnx")
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.3, 0.4)
    x = embedded(path, mean=mean, std=std)
    assert x.shape == (5, 4)
    made = ImageEncoder(locate(EncoderSpec(onnx=path, size=16, mean=mean, std=std)), "cpu")
    pixels = made.pixels(PICTURES).numpy()
    assert pixels.shape == (5, 3, 16, 16)
    shrunk = np.asarray(PICTURES[0].resize((16, 17), 3), np.float32)[:16] / 255
    np.testing.assert_allclose(pixels[0], ((shrunk - mean) / std).transpose(2, 0, 1), atol=1e-5)
    weights = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    patches = pixels.reshape(5, 3, 4, 4, 4, 4)
    np.testing.assert_allclose(
        x, np.einsum("nchiwj,fcij->nfhw", patches, weights).mean((2, 3)), atol=1e-4
    )


def test_what_does_not_do_is_one_message(tmp_path):
    path = export(tmp_path / "tiny.onnx")
    with pytest.raises(
        UserError, match=r"refuses images of 8 pixels .*give size: as the network's input"
    ):
        embedded(path, size=8)
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        embedded(path)
