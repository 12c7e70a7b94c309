import tracemalloc

import numpy as np
import pytest
from pictures import save_medmnist

from fedsim.data.sources.medmnist import PackedImages, load_medmnist
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError


def organs(root, size=28):
    return load_medmnist("organamnist", size, root, "organamnist")


def test_the_official_split_and_class_names_are_kept(tmp_path):
    save_medmnist(tmp_path / "organamnist.npz")
    images = organs(tmp_path)
    assert [int((images.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [60, 12, 30]
    assert images.class_names[:2] == ("bladder", "femur-left")
    assert images.image_name(75) == "test_images[3]"


def test_images_are_those_of_the_arrays_in_any_order(tmp_path):
    path = save_medmnist(tmp_path / "organamnist.npz")
    images = organs(tmp_path)
    with np.load(path) as held:
        expected = np.concatenate([held[f"{part}_images"] for part in ("train", "val", "test")])
    for row in (0, 1, 59, 60, 101, 5, 72, 0):
        np.testing.assert_array_equal(np.asarray(images.decoder(row)())[:, :, 0], expected[row])


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


def test_a_set_with_several_labels_an_image_is_refused(tmp_path):
    with pytest.raises(UserError, match="14 yes-or-no labels an image"):
        load_medmnist("chestmnist", 28, tmp_path, "chest")
    with pytest.raises(UserError, match=r"unknown MedMNIST set 'organ'; did you mean 'organ.mnist'"):
        load_medmnist("organ", 28, tmp_path, "organ")


def test_a_file_that_cannot_be_downloaded_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: as without a network
    with pytest.raises(UserError) as caught:
        organs(tmp_path, size=64)
    assert "organamnist_64.npz is not there and cannot be downloaded" in caught.value.what
    for word in ("https://zenodo.org", "organamnist_64.npz", "MD5", str(tmp_path), "root:"):
        assert word in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_pickled_objects_and_wrong_arrays_are_refused(tmp_path):
    with np.load(save_medmnist(tmp_path / "organamnist.npz")) as held:
        arrays = dict(held)
    for changed, message in (
        ({"train_images": np.array([{}] * 60, dtype=object)}, "cannot be read"),
        ({"train_labels": np.array([[{}]] * 60, dtype=object)}, "cannot be read"),
        ({"test_images": np.zeros((30, 5), np.uint8)}, r"test_images has shape \[30, 5\]"),
        ({"train_labels": np.full((60, 1), 11)}, "is not the official file"),
    ):
        np.savez(tmp_path / "organamnist.npz", **(arrays | changed))
        with pytest.raises(UserError, match=message):
            organs(tmp_path)
