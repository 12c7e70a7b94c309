from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from fedsim.data.images import BadImage, ImageFiles, decoded, without_labels
from fedsim.data.split import TEST, TRAIN


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 200]], np.uint8), [[0, 0, 0], [200, 200, 200]]),
        (np.array([[0, 0xC8FF]], np.uint16), [[0, 0, 0], [200, 200, 200]]),
        (np.array([[[1, 2, 3, 255], [4, 5, 6, 0]]], np.uint8), [[1, 2, 3], [4, 5, 6]]),
    ],
    ids=["grey", "16 bits", "with transparency"],
)
def test_every_mode_becomes_rgb_of_8_bits(tmp_path, pixels, expected):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    image = decoded(str(path))
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == expected


@pytest.mark.parametrize("kept", [0, 4, 700])
def test_a_damaged_image_is_a_bad_image(tmp_path, kept):
    path = tmp_path / "whole.jpg"
    picture(0, size=90).save(path)
    with pytest.raises(BadImage):
        decoded(path.read_bytes()[:kept])


def test_pixels_of_a_wrong_shape_are_a_bad_image():
    with pytest.raises(BadImage):
        decoded(np.zeros((4, 4, 1), np.uint8))


def test_8_bits_stored_as_32_are_a_bad_image(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 200]], np.int32)).save(path)
    with pytest.raises(BadImage, match="store them with 8 bits"):
        decoded(str(path))


def test_set_without_labels_gets_another_test_image():
    images = without_labels("public", ImageFiles([Path(f"{n}.png") for n in range(4)], Path()))
    assert images.take(np.arange(3)).split.tolist() == [TRAIN, TRAIN, TEST]


def test_no_program_is_run_to_draw_an_image(tmp_path):
    path = tmp_path / "a.png"
    picture(0).save(path, format="EPS")
    with pytest.raises(BadImage, match="is PostScript, a program, and is not run"):
        decoded(str(path))
