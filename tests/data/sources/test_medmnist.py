import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pictures import save_medmnist

from fedsim.data.sources.medmnist import PackedImages, flags, load_medmnist, single_label
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError

REPOSITORY = Path(__file__).parents[3]
OFFICIAL = next((f for f in (REPOSITORY / "shared/data", REPOSITORY.parent / "shared/data") if (f / "organamnist.npz").is_file()), None)


def organs(root, size=28):
    return load_medmnist("organamnist", size, root, "organamnist")


def test_the_official_split_and_class_names_are_kept(tmp_path):
    save_medmnist(tmp_path / "organamnist.npz")
    images = organs(tmp_path)
    assert [int((images.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [60, 12, 30]
    assert images.class_names[:2] == ("bladder", "femur-left")
    assert images.image_name(75) == "test_images[3]"


def test_images_are_those_of_the_arrays_in_any_order_and_process(tmp_path):
    path = save_medmnist(tmp_path / "organamnist.npz")
    images = organs(tmp_path)
    with np.load(path) as held:
        expected = np.concatenate([held[f"{part}_images"] for part in ("train", "val", "test")])
    again = pickle.loads(pickle.dumps(images))  # noqa: S301 (as Ray hands it to its actors)
    for row in (0, 1, 59, 60, 101, 5, 72, 0):
        for each in (images, again):
            np.testing.assert_array_equal(np.asarray(each.decoder(row)())[:, :, 0], expected[row])


def test_decoding_keeps_one_image_in_memory(tmp_path):
    path = tmp_path / "big.npz"
    np.savez_compressed(path, a=np.zeros((3_000, 64, 64), np.uint8))
    images = PackedImages(path, ["a"])
    tracemalloc.start()
    for row in range(0, 3_000, 10):
        images.decoder(row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000 * 64 * 64 / 10


def test_every_2d_set_is_known_at_every_size():
    known = flags()
    assert len(known) == 12
    assert all({"url_64", "url_128", "url_224", "MD5_224"} <= info.keys() for info in known.values())
    assert [flag for flag, info in known.items() if not single_label(info)] == ["chestmnist"]


def test_a_set_with_several_labels_an_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="14 yes-or-no labels an image"):
        load_medmnist("chestmnist", 28, tmp_path, "chest")


def test_a_file_that_cannot_be_downloaded_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: as without a network
    with pytest.raises(UserError) as caught:
        organs(tmp_path, size=64)
    assert "organamnist_64.npz is not there and cannot be downloaded" in caught.value.what
    for word in ("https://zenodo.org", "organamnist_64.npz", "MD5", str(tmp_path), "root:"):
        assert word in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 a broken zip file"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "organamnist.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"organamnist.npz: cannot be read"):
        organs(tmp_path)


def test_pickled_objects_and_wrong_arrays_are_refused(tmp_path):
    with np.load(save_medmnist(tmp_path / "organamnist.npz")) as held:
        arrays = dict(held)
    for changed, message in (
        ({"train_images": np.array([{}] * 60, dtype=object)}, "Python objects, which are never read"),
        ({"train_labels": np.array([[{}]] * 60, dtype=object)}, "cannot be read"),
        ({"test_images": np.zeros((30, 5), np.uint8)}, r"test_images has shape \[30, 5\]"),
        ({"train_labels": np.full((60, 1), 11)}, "is not the official file"),
    ):
        np.savez(tmp_path / "organamnist.npz", **(arrays | changed))
        with pytest.raises(UserError, match=message):
            organs(tmp_path)


@pytest.mark.skipif(OFFICIAL is None, reason="the official organamnist.npz is not beside the checkout")
def test_the_official_file_reads():
    images = organs(OFFICIAL)
    assert [int((images.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [34561, 6491, 17778]
    assert images.decoder(40_000)().size == (28, 28)
