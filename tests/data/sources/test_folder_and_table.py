import re

import numpy as np
import pytest
from pictures import save_folder

from fedsim.data.images import decoded
from fedsim.data.sources.load import image_set
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN, VALIDATION
from fedsim.errors import UserError


def read(folder, **keys):
    return image_set(DatasetSpec(imagefolder=folder, **keys))


def count_tested(images, among=True):
    """The number of test images of every class."""
    tested = images.y[(images.split == TEST) & among]
    return np.bincount(tested, minlength=len(images.class_names)).tolist()


def test_a_class_is_a_folder_and_a_fixed_quarter_is_for_testing(tmp_path):
    images = read(save_folder(tmp_path / "pets"))
    assert images.class_names == ("cat", "dog", "eel")
    assert np.bincount(images.y).tolist() == [8, 8, 8]
    assert count_tested(images) == [2, 2, 2]
    np.testing.assert_array_equal(images.split, read(tmp_path / "pets").split)


def test_images_of_a_hidden_folder_are_ignored(tmp_path):
    save_folder(tmp_path / "pets")
    save_folder(tmp_path / "pets" / "cat", classes=(".ipynb_checkpoints",), start=100)
    assert np.bincount(read(tmp_path / "pets").y).tolist() == [8, 8, 8]


def test_train_and_test_folders_are_the_split(tmp_path):
    for start, part in enumerate(("train", "val", "test")):
        save_folder(tmp_path / part, each=3, start=100 * start)
    images = read(tmp_path)
    assert images.class_names == ("cat", "dog", "eel")
    folder_of = {TRAIN: "train", VALIDATION: "val", TEST: "test"}
    for row, part in enumerate(images.split.tolist()):
        assert images.image_name(row).startswith(f"{folder_of[part]}/")


def test_every_domain_at_the_top_has_its_own_test_images(tmp_path):
    save_folder(tmp_path / "photo", each=8)
    save_folder(tmp_path / "sketch", each=4, start=100)
    save_folder(tmp_path / "sketch", classes=("fox",), start=300)
    images = read(tmp_path, domains=True)
    domain = images.columns["domain"]
    assert images.class_names == ("cat", "dog", "eel", "fox")
    assert count_tested(images, domain == "photo") == [2, 2, 2, 0]
    assert count_tested(images, domain == "sketch") == [1, 1, 1, 2]
    for row, name in enumerate(domain.tolist()):
        assert images.image_name(row).startswith(f"{name}/")


@pytest.mark.parametrize("parts", [[""], ["train", "test"]], ids=["no split", "a split"])
def test_a_domain_without_class_folders_is_refused(tmp_path, parts):
    for start, part in enumerate(parts):
        save_folder(tmp_path / "photo" / part, start=100 * start)
        (tmp_path / "sketch" / part).mkdir(parents=True)
    with pytest.raises(UserError, match=r"sketch: there is no class folder in this domain"):
        read(tmp_path, domains=True)


CLASSES = ("benign", "malignant")
HOSPITALS = ("hospital_a", "hospital_b")


def save_nested(root, outer, inner):
    """``root/<outer>/<inner>/<n>.png``, every image another one."""
    for position, name in enumerate(outer):
        save_folder(root / name, classes=inner, each=4, start=100 * position)
    return root


HOSPITALS_WITH_CLASSES = re.compile(
    "the folders hospital_a, hospital_b hold the same folders benign, malignant, .* "
    "give `domains: true` .* `domains: false`"
)


def test_folders_of_hospitals_are_not_taken_for_classes(tmp_path):
    save_nested(tmp_path, HOSPITALS, CLASSES)
    with pytest.raises(UserError, match=HOSPITALS_WITH_CLASSES):
        read(tmp_path)


def test_hospitals_that_lack_a_class_are_noticed_too(tmp_path):
    save_nested(tmp_path, HOSPITALS, CLASSES)
    save_folder(tmp_path / "hospital_c", classes=("benign",), start=300)
    with pytest.raises(UserError, match=r"hospital_c hold the same folders .*`domains: true`"):
        read(tmp_path)


def test_hospitals_with_their_own_split_are_noticed_too(tmp_path):
    for start, part in enumerate(("train", "test")):
        for hospital in HOSPITALS:
            save_folder(
                tmp_path / hospital / part,
                classes=CLASSES,
                start=200 * start,
            )
    with pytest.raises(UserError, match=HOSPITALS_WITH_CLASSES):
        read(tmp_path)


def test_the_message_says_where_a_split_above_hospitals_goes(tmp_path):
    for part in ("train", "test"):
        save_nested(tmp_path / part, HOSPITALS, CLASSES)
    with pytest.raises(UserError, match=r"above train and test .* `domains: true`"):
        read(tmp_path)


def test_classes_with_equal_folders_load_with_domains_false(tmp_path):
    save_nested(tmp_path, HOSPITALS, CLASSES)
    assert read(tmp_path, domains=False).class_names == HOSPITALS


@pytest.mark.parametrize(
    "folders_within_a_class",
    [
        [("p0", "p1", "p2", "p3"), ("p3", "p4", "p5", "p6")],
        [("SOB",), ("SOB",)],
        [("train", "test"), ("train", "test")],
    ],
    ids=["patients, one with both classes", "one shared folder", "a split"],
)
def test_folders_within_classes_are_no_classes(
    tmp_path,
    folders_within_a_class,
):
    for start, name in enumerate(CLASSES):
        folders = folders_within_a_class[start]
        save_folder(tmp_path / name, classes=folders, each=4, start=100 * start)
    assert read(tmp_path).class_names == CLASSES


def read_table(folder, head, lines):
    """A table beside the images ``one/<n>.png`` and ``two/<n>.png``."""
    save_folder(folder, classes=("one", "two"), each=6)
    path = folder / "images.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return image_set(DatasetSpec(csv=path))


def lines_with(texts):
    """Two lines per text, one of each class."""
    return [f"{name}/{n}.png,{name},{text}" for name in ("two", "one") for n, text in texts.items()]


def test_a_table_gives_paths_labels_and_columns(tmp_path):
    sites = {0: "north", 1: "north", 2: ""}
    images = read_table(tmp_path, "path,label,site", lines_with(sites))
    assert images.class_names == ("one", "two")
    assert images.y.tolist() == [1] * 3 + [0] * 3
    assert images.columns["site"].tolist() == ["north", "north", ""] * 2
    assert decoded(images.source(0)).size == (20, 24)


def test_a_column_of_a_table_may_be_the_split(tmp_path):
    parts = {0: "Train", 1: "train", 2: "test"}
    images = read_table(tmp_path, "path,label,split", lines_with(parts))
    assert np.flatnonzero(images.split == TEST).tolist() == [2, 5]


def test_columns_are_texts_without_gaps_or_whole_numbers(tmp_path):
    texts = {0: "00,10, NA,1.50", 1: "0,9,,1.5", 2: "1,-3,p 1 ,0.5"}
    head = "path,label,patient,visit,site,dose"
    columns = read_table(tmp_path, head, lines_with(texts)).columns
    assert {name: values.tolist() for name, values in columns.items()} == {
        "patient": ["00", "0", "1"] * 2,
        "visit": [10, 9, -3] * 2,
        "site": ["", "", "p 1"] * 2,
        "dose": ["1.50", "1.5", "0.5"] * 2,
    }


@pytest.mark.parametrize(
    ("head", "lines", "message"),
    [
        ("path,lable", ["a.png,1"], "there is no column 'label'; did you mean 'lable'"),
        (
            "path,label",
            ["one/0.png,1", "one/1.png,"],
            "column 'label' lacks 1 value, the first in row 2 below the head line",
        ),
        (
            "path,label",
            ["one/0.png,1", "b.png,2"],
            r"1 of 2 images cannot be found \(the first: .*b.png\); correct the paths",
        ),
        (
            "path,label,split",
            lines_with({0: "maybe", 1: "train"}),
            "column 'split' has the value 'maybe'",
        ),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, head, lines, message):
    with pytest.raises(UserError, match=message):
        read_table(tmp_path, head, lines)
