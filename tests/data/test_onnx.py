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


def write_network(path: Path, *, masked: bool = False) -> Path:
    """Write a network of one convolution, with its mean ``vector`` as output.

    Args:
        path: The file.
        masked: Whether the network takes a mask beside the images.
    """
    make = onnx.helper
    inputs = [make.make_tensor_value_info("images", 1, ("n", 3, 16, 16))]
    if masked:
        inputs.append(make.make_tensor_value_info("mask", 1, ("n", 16, 16)))
    graph = make.make_graph(
        [
            make.make_node("Conv", ["images", "w"], ["map"], strides=[4, 4]),
            make.make_node("ReduceMean", ["map"], ["vector"], axes=[2, 3], keepdims=0),
        ],
        "tiny",
        inputs,
        [make.make_tensor_value_info("vector", 1, ["n", 4])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    opset = make.make_opsetid("", 13)
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """The file of a network that takes images alone."""
    return write_network(tmp_path / "tiny.onnx")


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


def test_all_inputs_of_a_refused_network_are_listed(tmp_path):
    path = write_network(tmp_path / "masked.onnx", masked=True)
    message = r"takes these inputs: images: tensor\(float\) .*, mask: tensor\(float\) .*; export"
    with pytest.raises(UserError, match=message):
        encoder(path)
