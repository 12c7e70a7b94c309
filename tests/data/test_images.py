import numpy as np
import pytest
from pictures import picture
from PIL import Image

from fedsim.data.images import BadImage, ImageSet, PixelArrays, decoded


def image_set(**changes):
    y = np.arange(24) % 3
    given = {
        "name": "toy",
        "images": PixelArrays(np.random.default_rng(0).integers(0, 256, (24, 6, 6), dtype=np.uint8)),
        "rows": np.arange(24),
        "y": y,
        "split": np.repeat([0, 1, 2], 8),
        "class_names": ("a", "b", "c"),
        "columns": {"site": y % 2},
    }
    return ImageSet(**(given | changes))


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
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(BadImage):
            decoded(str(tmp_path / "a.jpg"))
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="floating-point"):
        decoded(str(tmp_path / "a.tif"))


def test_no_program_is_run_to_draw_an_image(tmp_path):
    picture(0).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(BadImage, match="is PostScript, a program, and is not run"):
        decoded(str(tmp_path / "a.png"))


def test_the_fingerprint_follows_pixels_labels_split_and_columns_and_not_the_name():
    other = PixelArrays(np.zeros((24, 6, 6), np.uint8))
    made = image_set()
    changed = [
        image_set(images=other),
        image_set(y=(np.arange(24) + 1) % 3),
        image_set(columns={}),
        made.take(np.arange(24) != 9),
    ]
    assert len({each.fingerprint for each in [made, *changed]}) == 5
    assert image_set(name="another").fingerprint == made.fingerprint
