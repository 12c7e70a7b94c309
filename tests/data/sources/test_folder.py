import os

import numpy as np
import pytest
from pictures import save_folder

from fedsim.data.images import BadImage
from fedsim.data.sources.folder import load_image_folder
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError


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


def test_a_folder_without_domains_is_reported_how_they_stand(tmp_path):
    with pytest.raises(UserError, match="give a folder that holds one folder a domain"):
        load_image_folder(tmp_path / "none", "none", domains=True)
    with pytest.raises(UserError, match="holds no folders of classes; put the classes' folders into a folder a domain"):
        load_image_folder(save_folder(tmp_path / "pets"), "pets", domains=True)


@pytest.mark.timeout(30)
def test_what_is_named_like_an_image_and_is_no_file_is_a_bad_image_and_a_folder_none(tmp_path):
    root = save_folder(tmp_path / "pets")
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "device.png").symlink_to("/dev/zero")
    (root / "cat" / "dangling.png").symlink_to("nowhere")
    (root / "cat" / "folder.png").mkdir()
    images = load_image_folder(root, "pets")
    assert len(images) == 27
    assert len(set(images.digests)) == 27
    assert images.contents is images.digests, "read once"
    told = {}
    for position in range(27):
        try:
            images.decoder(position)()
        except BadImage as error:
            told[images.image_name(position)] = str(error)
    assert told == {
        "cat/dangling.png": "no such file or directory",
        "cat/device.png": "it is no regular file",
        "cat/pipe.png": "it is no regular file",
    }
