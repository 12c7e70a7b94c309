import numpy as np
import pytest
from pictures import picture
from PIL import Image

from fedsim.data.images import BadImage, decoded


@pytest.mark.parametrize(
    ("pixels", "mode", "expected"),
    [
        (np.array([[0, 200]], np.uint8), "L", [[0, 0, 0], [200, 200, 200]]),
        (np.array([[0, 0xC8FF]], np.uint16), "I;16", [[0, 0, 0], [200, 200, 200]]),
        (np.array([[[1, 2, 3, 255], [4, 5, 6, 0]]], np.uint8), "RGBA", [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_every_mode_becomes_rgb_and_16_bits_are_scaled_not_cut(tmp_path, pixels, mode, expected):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = decoded(str(tmp_path / "a.png"))
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == expected


def test_a_damaged_image_is_a_bad_image(tmp_path):
    picture(0, size=90).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image", whole[:4]):
        with pytest.raises(BadImage):
            decoded(content)


def test_no_program_is_run_to_draw_an_image(tmp_path):
    picture(0).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(BadImage, match="is PostScript, a program, and is not run"):
        decoded(str(tmp_path / "a.png"))
