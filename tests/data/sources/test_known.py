"""Sets in a folder, in the layout of the real files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, save_chest_xray, save_ham10000, save_milk10k

from fedsim.data.images import ImageSet, decoded
from fedsim.data.sources.known import DIAGNOSES
from fedsim.data.sources.load import image_set
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError

SAVED: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "ham10000": (save_ham10000, "lesion_id", "HAM10000_metadata", "https://doi.org/10.7910"),
    "milk10k": (
        save_milk10k,
        "lesion_id",
        "MILK10k_Training_Input",
        "https://challenge.isic-archive.com",
    ),
    "chest-xray": (save_chest_xray, "patient", "train", "https://data.mendeley.com"),
}


def asked(name: str, root: Path) -> ImageSet:
    return image_set(DatasetSpec(name=name, root=root))


@pytest.mark.parametrize("name", SAVED)
def test_a_quarter_of_the_patients_or_lesions_is_for_testing_and_none_is_on_both_sides(
    tmp_path: Path, name: str
) -> None:
    save, column, missing, url = SAVED[name]
    with pytest.raises(
        UserError, match=f"there is no {missing}; download the files of {name} from {url}.*root:"
    ):
        asked(name, tmp_path)
    images = asked(name, save(tmp_path))
    sides = [set(images.columns[column][images.split == part]) for part in (TRAIN, TEST)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) / len(sides[0] | sides[1]) == pytest.approx(0.25, abs=0.05)
    decoded(images.source(1))


def test_ham10000_has_both_parts_and_its_metadata(tmp_path: Path) -> None:
    images = asked("ham10000", save_ham10000(tmp_path / "new"))
    assert (len(images), images.class_names, images.image_name(1)) == (
        60,
        ("bkl", "mel", "nv"),
        "HAM10000_images_part_2/ISIC_0024307.jpg",
    )
    assert images.columns.keys() == {"site", "lesion_id", "age", "sex", "localization", "dx_type"}
    old = save_ham10000(tmp_path / "old", lacks=("dataset",))
    assert "site" not in asked("ham10000", old).columns


def test_both_images_of_a_milk10k_lesion_carry_its_diagnosis(tmp_path: Path) -> None:
    images = asked("milk10k", save_milk10k(tmp_path))
    assert (len(images), images.class_names) == (96, DIAGNOSES[:9])
    for row, lesion in enumerate(images.columns["lesion_id"].tolist()):
        assert images.class_names[int(images.y[row])] == DIAGNOSES[int(lesion[3:]) % 9]
        assert lesion in images.image_name(row)
    assert set(images.columns["site"]) == {"head_neck_face", "trunk", "unknown"}
    assert set(images.columns["image_type"]) == {"clinical: close-up", "dermoscopic"}


def test_classes_and_patients_of_chest_x_rays_are_in_the_names_of_files(tmp_path: Path) -> None:
    images = asked("chest-xray", save_chest_xray(tmp_path))
    assert images.class_names == ("normal", "bacteria", "virus")
    assert np.bincount(images.y).tolist() == [8, 28, 28]
    of = dict(
        zip(
            (images.image_name(i) for i in range(len(images))),
            images.columns["patient"].tolist(),
            strict=True,
        )
    )
    assert (
        of["train/PNEUMONIA/person1_bacteria_10.jpeg"]
        == of["test/PNEUMONIA/person1_virus_901.jpeg"]
        == "person1"
    )
    assert (
        of["train/NORMAL/NORMAL2-IM-0383-0001.jpeg"]
        == of["test/NORMAL/NORMAL2-IM-0383-0002.jpeg"]
        == "NORMAL2-IM-0383"
    )
    picture(0).save(tmp_path / "chest_xray/test/PNEUMONIA/scan.jpeg")
    with pytest.raises(
        UserError,
        match=r"test/PNEUMONIA/scan.jpeg names no patient; give files named as "
        r"person12_bacteria_34",
    ):
        asked("chest-xray", tmp_path)
