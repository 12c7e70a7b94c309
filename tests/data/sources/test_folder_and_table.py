import re

import numpy as np
import pytest
from pictures import save_folder

from fedsim.data.images import decoded
from fedsim.data.sources.files import load_image_folder, load_image_table
from fedsim.data.sources.load import image_set
from fedsim.data.spec import DatasetSpec
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
    assert {images.image_name(i).split("/")[0] for i in np.flatnonzero(images.split == TEST)} == {
        "test"
    }


def test_the_folders_at_the_top_may_be_domains_each_with_test_rows_of_its_own(tmp_path):
    for start, domain in enumerate(("photo", "sketch")):
        save_folder(tmp_path / "pets" / domain, each=8 - 4 * start, start=100 * start)
    save_folder(tmp_path / "pets" / "sketch", classes=("fox",), start=300)
    images = load_image_folder(tmp_path / "pets", "pets", domains=True)
    assert images.class_names == ("cat", "dog", "eel", "fox")
    domain = images.columns["domain"]
    assert [int((domain == name).sum()) for name in ("photo", "sketch")] == [24, 20]
    tested = images.split == TEST
    assert [
        np.bincount(images.y[tested & (domain == name)], minlength=4).tolist()
        for name in ("photo", "sketch")
    ] == [
        [2, 2, 2, 0],
        [1, 1, 1, 2],
    ]
    assert all(images.image_name(i).startswith(str(name)) for i, name in enumerate(domain))


def save_hospitals(root, hospitals=("hospital_a", "hospital_b"), classes=("benign", "malignant")):
    """``root/<hospital>/<class>/<n>.png``."""
    for place, hospital in enumerate(hospitals):
        save_folder(root / hospital, classes=classes, each=4, start=100 * place)
    return root


HOSPITALS_WITH_CLASSES = re.compile(
    "the folders hospital_a, hospital_b hold the same folders benign, malignant, .* "
    "give `domains: true` .* `domains: false`"
)


def test_folders_of_hospitals_are_not_taken_for_classes(tmp_path):
    save_hospitals(tmp_path / "scans")
    with pytest.raises(UserError, match=HOSPITALS_WITH_CLASSES):
        load_image_folder(tmp_path / "scans", "scans")


def test_hospitals_that_lack_a_class_are_noticed_too(tmp_path):
    root = save_hospitals(tmp_path / "scans")
    save_folder(root / "hospital_c", classes=("benign",), start=300)
    with pytest.raises(UserError, match=r"hospital_c hold the same folders .*`domains: true`"):
        load_image_folder(root, "scans")


def test_hospitals_with_a_split_of_their_own_are_noticed_too(tmp_path):
    for place, part in enumerate(("train", "test")):
        for hospital in ("hospital_a", "hospital_b"):
            classes = ("benign", "malignant")
            save_folder(tmp_path / "scans" / hospital / part, classes=classes, start=200 * place)
    with pytest.raises(UserError, match=HOSPITALS_WITH_CLASSES):
        load_image_folder(tmp_path / "scans", "scans")


def test_hospitals_below_a_split_are_told_where_it_goes(tmp_path):
    for part in ("train", "test"):
        save_hospitals(tmp_path / "scans" / part)
    with pytest.raises(UserError, match=r"train and test into each .* `domains: true`"):
        load_image_folder(tmp_path / "scans", "scans")


def test_classes_with_equal_folders_load_where_that_is_said(tmp_path):
    root = save_hospitals(tmp_path / "scans")
    spec = DatasetSpec.model_validate({"imagefolder": root, "domains": False})
    assert image_set(spec).class_names == ("hospital_a", "hospital_b")
    with pytest.raises(UserError, match="`domains: true`"):
        image_set(DatasetSpec(imagefolder=root))


def test_folders_of_patients_within_classes_still_load(tmp_path):
    for place, name in enumerate(("benign", "malignant")):
        patients = tuple(f"patient_{n}" for n in range(3 * place, 3 * place + 4))  # one has both
        save_folder(tmp_path / "scans" / name, classes=patients, each=4, start=100 * place)
    images = load_image_folder(tmp_path / "scans", "scans")
    assert images.class_names == ("benign", "malignant")


def test_one_folder_that_classes_share_still_loads(tmp_path):
    save_hospitals(tmp_path / "breast", ("benign", "malignant"), ("SOB",))
    assert load_image_folder(tmp_path / "breast", "breast").class_names == ("benign", "malignant")


def test_a_split_within_each_class_is_no_class(tmp_path):
    save_hospitals(tmp_path / "scans", ("benign", "malignant"), ("train", "test"))
    assert load_image_folder(tmp_path / "scans", "scans").class_names == ("benign", "malignant")


def table(folder, lines=None, head="path,label,site,age"):
    save_folder(folder / "pictures", classes=("one", "two"), each=6)
    rows = lines or [
        f"pictures/{name}/{n}.png,{name},{'north' if n < 3 else ''},{n}"
        for name in ("two", "one")
        for n in range(6)
    ]
    (folder / "images.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder / "images.csv"


def test_a_table_gives_paths_labels_and_columns(tmp_path):
    images = load_image_table(table(tmp_path), "toy")
    assert images.class_names == ("one", "two")
    assert images.y.tolist() == [1] * 6 + [0] * 6
    assert images.columns["site"].tolist() == (["north"] * 3 + [""] * 3) * 2
    assert images.columns["age"].dtype.kind == "i"
    assert decoded(images.source(0)).size == (20, 24)
    rows = [
        f"pictures/{name}/{n}.png,{name},{'test' if n == 5 else 'Train'}"
        for name in ("one", "two")
        for n in range(6)
    ]
    images = load_image_table(table(tmp_path / "split", rows, "path,label,split"), "toy")
    assert np.flatnonzero(images.split == TEST).tolist() == [5, 11]


def test_columns_are_the_texts_that_stand_there_but_for_gaps_or_whole_numbers(tmp_path):
    facts = ["00,10, NA,1.50", "0,9,,1.5", "1,-3,p 1 ,0.5"]
    rows = [
        f"pictures/{name}/{n}.png,{name},{fact}"
        for name in ("one", "two")
        for n, fact in enumerate(facts)
    ]
    columns = load_image_table(
        table(tmp_path, rows, "path,label,patient,visit,site,dose"), "toy"
    ).columns
    assert {name: values.tolist() for name, values in columns.items()} == {
        "patient": ["00", "0", "1"] * 2,
        "visit": [10, 9, -3] * 2,
        "site": ["", "", "p 1"] * 2,
        "dose": ["1.50", "1.5", "0.5"] * 2,
    }
    assert {values.dtype.kind for name, values in columns.items() if name != "visit"} == {"U"}


@pytest.mark.parametrize(
    ("head", "lines", "message"),
    [
        ("path,lable", ["a.png,1"], "there is no column 'label'; did you mean 'lable'"),
        (
            "path,label",
            ["pictures/one/0.png,1", "pictures/one/1.png,"],
            "column 'label' lacks 1 values, the first in line 3",
        ),
        (
            "path,label",
            ["pictures/one/0.png,1", "b.png,2"],
            r"1 of 2 images are not there, the first is .*b.png; correct the paths",
        ),
        (
            "path,label,split",
            [f"pictures/one/{n}.png,{n % 2},maybe" for n in range(4)],
            "column 'split' has the value 'maybe'",
        ),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path, head, lines, message):
    path = table(tmp_path)
    path.write_text("\n".join([head, *lines]) + "\n")
    with pytest.raises(UserError, match=message):
        load_image_table(path, "toy")
