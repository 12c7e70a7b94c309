import pytest
from pictures import save_ham10000

from fedsim.data.sources.ham10000 import IMAGE_FOLDERS, METADATA_NAMES
from fedsim.data.sources.load import image_set
from fedsim.data.sources.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError


def asked(root, **more):
    return DatasetSpec.model_validate({"name": "ham10000", "root": root, **more})


@pytest.mark.parametrize("metadata", METADATA_NAMES)
def test_images_of_both_parts_come_with_their_metadata_and_a_lesion_stays_on_one_side(tmp_path, metadata):
    images = image_set(asked(save_ham10000(tmp_path, metadata)))
    assert (images.name, len(images), images.class_names) == ("ham10000", 60, ("bkl", "mel", "nv"))
    assert images.columns.keys() == {"site", "lesion_id", "age", "sex", "localization", "dx_type"}
    assert set(images.columns["site"]) == {"vidir_modern", "rosendahl", "vienna_dias"}
    sides = [set(images.columns["lesion_id"][images.split == part]) for part in (TRAIN, TEST)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 8  # a quarter of 30
    images.decoder(1)()
    assert images.image_name(1) == f"{IMAGE_FOLDERS[1]}/ISIC_0024307.jpg"


def test_old_copies_of_the_metadata_have_no_site(tmp_path):
    assert "site" not in image_set(asked(save_ham10000(tmp_path, lacks=["dataset"]))).columns


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"there is no HAM10000_metadata; download the files of ham10000 from https://doi.org/10.7910"):
        image_set(asked(tmp_path))
    save_ham10000(tmp_path)
    (tmp_path / IMAGE_FOLDERS[0] / "ISIC_0024306.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 60 images are not there, the first is .*ISIC_0024306.jpg; unpack the images into"):
        image_set(asked(tmp_path))
