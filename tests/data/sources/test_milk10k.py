from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import save_milk10k

from fedsim.data.sources.load import image_set
from fedsim.data.sources.milk10k import DIAGNOSES, GROUND_TRUTH, IMAGES, METADATA, load_milk10k
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError


@pytest.fixture
def milk(tmp_path: Path) -> Path:
    return save_milk10k(tmp_path)


def test_both_images_of_a_lesion_carry_its_diagnosis_and_stay_on_one_side_of_the_split(milk):
    images = load_milk10k(milk, "milk10k")
    assert len(images) == 96
    assert images.class_names == DIAGNOSES[:9]
    for lesion in set(images.columns["lesion_id"].tolist()):
        rows = images.columns["lesion_id"] == lesion
        assert len(set(images.y[rows].tolist())) == len(set(images.split[rows].tolist())) == 1
        assert images.class_names[int(images.y[rows][0])] == DIAGNOSES[int(lesion[3:]) % 9]
        assert all(lesion in images.image_name(i) for i in np.flatnonzero(rows))
    assert (images.split == TEST).sum() == 24
    assert set(images.y[images.split == TRAIN]) == set(images.y[images.split == TEST]) == set(range(9))


def test_image_type_and_site_are_columns(milk):
    images = load_milk10k(milk, "milk10k")
    assert set(images.columns["image_type"]) == {"clinical: close-up", "dermoscopic"}
    assert set(images.columns["site"]) == {"head_neck_face", "trunk", "unknown"}
    assert "isic_id" not in images.columns


@pytest.mark.parametrize("missing", [IMAGES, METADATA, GROUND_TRUTH])
def test_what_is_missing_is_named_with_where_to_get_it_and_where_to_put_it(milk, missing):
    (milk / missing).rename(milk / "elsewhere")
    with pytest.raises(UserError) as caught:
        image_set(DatasetSpec(name="milk10k", root=milk))
    assert f"there is no {missing}" in str(caught.value)
    assert "challenge.isic-archive.com" in caught.value.hint
    assert str(milk) in caught.value.hint


def test_a_missing_image_an_unknown_lesion_and_a_double_diagnosis_are_named(milk):
    next((milk / IMAGES / "IL_0000007").iterdir()).unlink()
    with pytest.raises(UserError, match="1 of 96 images are not there"):
        load_milk10k(milk, "milk10k")
    truth = pd.read_csv(milk / GROUND_TRUTH)
    truth.iloc[1:].to_csv(milk / GROUND_TRUTH, index=False)
    with pytest.raises(UserError, match="lesion IL_0000000 is not in"):
        load_milk10k(milk, "milk10k")
    truth.assign(MEL=1.0).to_csv(milk / GROUND_TRUTH, index=False)
    with pytest.raises(UserError, match="not exactly one diagnosis"):
        load_milk10k(milk, "milk10k")
