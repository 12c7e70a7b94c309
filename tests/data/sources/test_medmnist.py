import numpy as np
import pytest
from pictures import save_medmnist

from fedsim.data.images import decoded
from fedsim.data.sources.load import image_set
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError


@pytest.fixture
def arrays(tmp_path):
    with np.load(save_medmnist(tmp_path / "organamnist.npz")) as archive:
        return dict(archive)


def organs(root):
    return image_set(DatasetSpec(name="medmnist:organamnist", root=root))


def test_medmnist_keeps_its_official_split_and_class_names(tmp_path, arrays):
    images = organs(tmp_path)
    np.testing.assert_array_equal(
        images.split,
        [TRAIN] * 60 + [VALIDATION] * 12 + [TEST] * 30,
    )
    assert images.class_names[:2] == ("bladder", "femur-left")
    assert images.image_name(75) == "test_images[3]"


def test_images_of_medmnist_are_read_in_any_order(tmp_path, arrays):
    images = organs(tmp_path)
    parts = [arrays[f"{part}_images"] for part in ("train", "val", "test")]
    expected = np.concatenate(parts)
    for row in (0, 1, 59, 60, 101, 5, 72, 0):
        pixels = np.asarray(decoded(images.source(row)))
        np.testing.assert_array_equal(pixels[:, :, 0], expected[row])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train_images", np.array([{}] * 60, dtype=object), "train_images holds no images"),
        ("train_labels", np.full((60, 1), 11), "it is not the official file"),
        ("train_labels", np.zeros((59, 1), int), "it is not the official file"),
    ],
    ids=["pickled objects", "an unknown label", "too few labels"],
)
def test_a_wrong_array_of_medmnist_is_refused(
    tmp_path,
    arrays,
    name,
    array,
    message,
):
    np.savez(tmp_path / "organamnist.npz", **(arrays | {name: array}))
    with pytest.raises(UserError, match=message):
        organs(tmp_path)
