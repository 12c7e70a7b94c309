from pathlib import Path

import numpy as np
import pytest
from pictures import picture

from fedsim.data.encoder import ImageEncoder, locate
from fedsim.data.spec import EncoderSpec
from fedsim.errors import UserError

onnx = pytest.importorskip(
    "onnx",
    reason="onnx, which writes the network, is not installed",
)
pytest.importorskip(
    "onnxruntime", reason="onnxruntime, which runs it, is not installed (extra onnx)"
)
PICTURES = [picture(n, size=40) for n in range(5)]
WEIGHTS = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """The file of a network of one convolution, with its mean ``vector`` as output."""
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("Conv", ["images", "w"], ["map"], strides=[4, 4]),
            make.make_node("ReduceMean", ["map"], ["vector"], axes=[2, 3], keepdims=0),
        ],
        "tiny",
        [make.make_tensor_value_info("images", 1, ("n", 3, 16, 16))],
        [make.make_tensor_value_info("vector", 1, ["n", 4])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    opset = make.make_opsetid("", 13)
    path = tmp_path / "tiny.onnx"
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def encoder(path, size=16, **keys):
    return ImageEncoder(
        locate(EncoderSpec(onnx=path, size=size, **keys)),
        "cpu",
    )


def test_images_are_scaled_cropped_and_normalised(network):
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.3, 0.4)
    pixels = encoder(network, mean=mean, std=std).pixels(PICTURES).numpy()
    shrunk = np.asarray(PICTURES[0].resize((16, 17), 3), np.float32)[:16] / 255
    expected = (shrunk - mean) / std
    np.testing.assert_allclose(
        pixels[0],
        expected.transpose(2, 0, 1),
        atol=1e-5,
    )


def test_an_exported_network_embeds_images(network):
    made = encoder(network)
    pixels = made.pixels(PICTURES)
    patches = pixels.numpy().reshape(5, 3, 4, 4, 4, 4)
    maps = np.einsum("nchiwj,fcij->nfhw", patches, WEIGHTS)
    np.testing.assert_allclose(made.embed(pixels), maps.mean((2, 3)), atol=1e-4)


def test_images_of_another_size_than_the_networks_are_refused(network):
    made = encoder(network, size=8)
    message = r"refuses images of 8 pixels .*give size: as the network's input"
    with pytest.raises(UserError, match=message):
        made.embed(made.pixels(PICTURES))


def test_a_broken_network_is_refused(network):
    network.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        encoder(network)
