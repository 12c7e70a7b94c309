import numpy as np
import pytest
from pictures import picture, save_chest_xray

from fedsim.data.sources.load import image_set
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError


@pytest.fixture
def root(tmp_path):
    return save_chest_xray(tmp_path)


def asked(root, **more):
    return DatasetSpec.model_validate({"name": "chest-xray", "root": root, **more})


@pytest.mark.parametrize("inner", [False, True])
def test_classes_and_patients_are_in_the_names_of_files(root, inner):
    images = image_set(asked(root / "chest_xray" if inner else root))
    assert images.class_names == ("normal", "bacteria", "virus")
    assert np.bincount(images.y).tolist() == [8, 28, 28]
    of = dict(zip((images.image_name(i) for i in range(len(images))), images.columns["patient"].tolist(), strict=True))
    assert of["train/PNEUMONIA/person1_bacteria_10.jpeg"] == of["test/PNEUMONIA/person1_virus_901.jpeg"] == "person1"
    assert of["train/NORMAL/IM-0666-0001-0001.jpeg"] == "IM-0666"
    assert of["train/NORMAL/NORMAL2-IM-0383-0001.jpeg"] == of["test/NORMAL/NORMAL2-IM-0383-0002.jpeg"] == "NORMAL2-IM-0383"
    assert set(images.columns["folder"]) == {"train", "test"}


def test_no_patient_is_on_both_sides_of_the_split(root):
    images = image_set(asked(root))
    sides = [set(images.columns["patient"][images.split == part]) for part in (TRAIN, TEST)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) / len(sides[0] | sides[1]) == pytest.approx(0.25, abs=0.05)


def test_a_file_that_names_no_patient_is_refused(root):
    picture(0).save(root / "chest_xray/test/PNEUMONIA/scan.jpeg")
    with pytest.raises(UserError, match=r"test/PNEUMONIA/scan.jpeg names no patient; give files named as person12_bacteria_34"):
        image_set(asked(root))


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"there is no train; download the files of chest-xray from https://data.mendeley.com"):
        image_set(asked(tmp_path))
