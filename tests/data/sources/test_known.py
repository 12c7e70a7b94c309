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


def read(name: str, root: Path) -> ImageSet:
    return image_set(DatasetSpec(name=name, root=root))


@pytest.mark.parametrize(
    ("name", "missing", "url"),
    [
        ("ham10000", "HAM10000_metadata", "https://doi.org/10.7910"),
        ("milk10k", "MILK10k_Training_Input", "https://challenge.isic-archive.com"),
        ("chest-xray", "train", "https://data.mendeley.com"),
    ],
)
def test_a_missing_set_is_named_with_its_download_page(
    tmp_path: Path, name: str, missing: str, url: str
) -> None:
    message = f"holds none of these .*: {missing}.*; download the files of {name} from {url}.*root:"
    with pytest.raises(UserError, match=message):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "save", "column"),
    [
        ("ham10000", save_ham10000, "lesion_id"),
        ("milk10k", save_milk10k, "lesion_id"),
        ("chest-xray", save_chest_xray, "patient"),
    ],
)
def test_a_quarter_of_the_patients_or_lesions_is_for_testing(
    tmp_path: Path, name: str, save: Callable[[Path], Path], column: str
) -> None:
    images = read(name, save(tmp_path))
    groups = images.columns[column]
    trained = set(groups[images.split == TRAIN])
    tested = set(groups[images.split == TEST])
    assert not trained & tested
    assert len(tested) / len(trained | tested) == pytest.approx(0.25, abs=0.05)
    decoded(images.source(1))


def test_ham10000_has_both_parts_and_its_metadata(tmp_path: Path) -> None:
    images = read("ham10000", save_ham10000(tmp_path))
    assert len(images) == 60
    assert images.class_names == ("bkl", "mel", "nv")
    assert images.image_name(1) == "HAM10000_images_part_2/ISIC_0024307.jpg"
    assert images.columns.keys() == {"site", "lesion_id", "age", "sex", "localization", "dx_type"}


def test_old_metadata_of_ham10000_has_no_sites(tmp_path: Path) -> None:
    images = read("ham10000", save_ham10000(tmp_path, lacks=("dataset",)))
    assert "site" not in images.columns


def test_both_images_of_a_milk10k_lesion_carry_its_diagnosis(tmp_path: Path) -> None:
    images = read("milk10k", save_milk10k(tmp_path))
    assert len(images) == 96
    assert images.class_names == DIAGNOSES[:9]
    for row, lesion in enumerate(images.columns["lesion_id"].tolist()):
        diagnosis = int(lesion[3:]) % 9
        assert images.y[row] == diagnosis
        assert lesion in images.image_name(row)


def test_columns_of_milk10k_have_no_gaps(tmp_path: Path) -> None:
    columns = read("milk10k", save_milk10k(tmp_path)).columns
    assert set(columns["site"]) == {"head_neck_face", "trunk", "unknown"}
    assert set(columns["image_type"]) == {"clinical: close-up", "dermoscopic"}


def test_classes_of_chest_x_rays_are_in_the_names_of_files(tmp_path: Path) -> None:
    images = read("chest-xray", save_chest_xray(tmp_path))
    assert images.class_names == ("normal", "bacteria", "virus")
    assert np.bincount(images.y).tolist() == [8, 28, 28]


@pytest.mark.parametrize(
    ("file", "patient"),
    [
        ("train/PNEUMONIA/person1_bacteria_10.jpeg", "person1"),
        ("test/PNEUMONIA/person1_virus_901.jpeg", "person1"),
        ("train/NORMAL/NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383"),
        ("test/NORMAL/NORMAL2-IM-0383-0002.jpeg", "NORMAL2-IM-0383"),
    ],
)
def test_patients_of_chest_x_rays_are_in_the_names_of_files(
    tmp_path: Path, file: str, patient: str
) -> None:
    images = read("chest-xray", save_chest_xray(tmp_path))
    names = [images.image_name(row) for row in range(len(images))]
    assert images.columns["patient"][names.index(file)] == patient


def test_a_chest_x_ray_without_a_patient_is_refused(tmp_path: Path) -> None:
    save_chest_xray(tmp_path)
    picture(0).save(tmp_path / "chest_xray/test/PNEUMONIA/scan.jpeg")
    message = "the file name of test/PNEUMONIA/scan.jpeg does not say which patient it is of"
    with pytest.raises(UserError, match=message):
        read("chest-xray", tmp_path)
