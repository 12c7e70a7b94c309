import numpy as np
from pictures import save_folder

from fedsim.data.sources.folder import load_image_folder
from fedsim.data.split import TEST, TRAIN, VALIDATION


def test_a_class_is_a_folder_and_a_fixed_quarter_is_for_testing(tmp_path):
    images = load_image_folder(save_folder(tmp_path / "pets"), "pets")
    assert images.class_names == ("cat", "dog", "eel")
    assert np.bincount(images.y).tolist() == [8, 8, 8]
    assert np.bincount(images.y[images.split == TEST]).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(images.split, load_image_folder(tmp_path / "pets", "x").split)


def test_train_and_test_folders_are_the_split(tmp_path):
    for start, part in enumerate(("train", "val", "test")):
        save_folder(tmp_path / "pets" / part, each=3, start=100 * start)
    images = load_image_folder(tmp_path / "pets", "pets")
    assert images.class_names == ("cat", "dog", "eel")
    assert [int((images.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [9, 9, 9]
    assert {images.image_name(i).split("/")[0] for i in np.flatnonzero(images.split == TEST)} == {"test"}


def test_the_folders_at_the_top_may_be_domains_each_with_test_rows_of_its_own(tmp_path):
    for start, domain in enumerate(("photo", "sketch")):
        save_folder(tmp_path / "pets" / domain, each=8 - 4 * start, start=100 * start)
    save_folder(tmp_path / "pets" / "sketch", classes=("fox",), start=300)
    images = load_image_folder(tmp_path / "pets", "pets", domains=True)
    assert images.class_names == ("cat", "dog", "eel", "fox")
    domain = images.columns["domain"]
    assert [int((domain == name).sum()) for name in ("photo", "sketch")] == [24, 20]
    tested = images.split == TEST
    assert [np.bincount(images.y[tested & (domain == name)], minlength=4).tolist() for name in ("photo", "sketch")] == [
        [2, 2, 2, 0],
        [1, 1, 1, 2],
    ]
    assert all(images.image_name(i).startswith(str(name)) for i, name in enumerate(domain))
