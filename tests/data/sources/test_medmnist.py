import numpy as np
import pytest
from pictures import save_medmnist

from fedsim.data.images import decoded
from fedsim.data.sources.known import load_medmnist
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError


def organs(root, size=28):
    return load_medmnist("organamnist", size, root, "organamnist")


def test_medmnist_keeps_official_split_class_names_and_images(
    tmp_path,
):
    path = save_medmnist(tmp_path / "organamnist.npz")
    images = organs(tmp_path)
    assert [int((images.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [60, 12, 30]
    assert images.class_names[:2] == ("bladder", "femur-left")
    assert images.image_name(75) == "test_images[3]"
    with np.load(path) as held:
        expected = np.concatenate([held[f"{part}_images"] for part in ("train", "val", "test")])
    for row in (0, 1, 59, 60, 101, 5, 72, 0):
        np.testing.assert_array_equal(
            np.asarray(decoded(images.source(row)))[:, :, 0], expected[row]
        )


def test_pickled_objects_and_wrong_arrays_are_refused(tmp_path):
    with np.load(save_medmnist(tmp_path / "organamnist.npz")) as held:
        arrays = dict(held)
    for changed, message in (
        ({"train_images": np.array([{}] * 60, dtype=object)}, "cannot be read"),
        ({"train_labels": np.full((60, 1), 11)}, "it is not the official file"),
    ):
        np.savez(tmp_path / "organamnist.npz", **(arrays | changed))
        with pytest.raises(UserError, match=message):
            organs(tmp_path)
