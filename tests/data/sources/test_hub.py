import numpy as np
import pytest
from pictures import picture, save_folder

from fedsim.data.images import decoded
from fedsim.data.sources.hub import load_hub
from fedsim.data.split import TEST
from fedsim.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_local_folder_of_the_hubs_format_is_read(tmp_path):
    for start, part in enumerate(("train", "test")):
        save_folder(tmp_path / "pets" / part, each=4, start=100 * start)
    images = load_hub(str(tmp_path / "pets"), "pets")
    assert images.class_names == ("cat", "dog", "eel")
    assert np.bincount(images.split).tolist() == [12, 0, 12]
    first = decoded(images.source(0))
    assert first.size == (20, 24)
    assert first.tobytes() == picture(0).tobytes()
    tested = decoded(images.source(int(np.argmax(images.split == TEST))))
    assert tested.tobytes() == picture(100).tobytes()


def test_columns_are_kept_and_a_set_without_test_split_gets_a_quarter(tmp_path):
    features = {"label": datasets.ClassLabel(names=["no", "yes"]), "site": datasets.Value("string")}
    images = load_hub(saved(tmp_path / "set", features, label=[n % 2 for n in range(12)], site=["a", "b", "b"] * 4), "set")
    assert images.class_names == ("no", "yes")
    assert images.columns["site"].tolist() == ["a", "b", "b"] * 4
    assert (images.split == TEST).sum() == 3


def saved(folder, features, **columns):
    rows = {"image": [picture(n) for n in range(len(columns["label"]))], **columns}
    folder.mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), **features})).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (datasets.Value("string"), ["a", "b", None, "a", "b", ""]),
        (datasets.ClassLabel(names=["a", "b"]), [0, 1, -1, 0, 1, None]),
    ],
)
def test_rows_without_a_label_are_refused(tmp_path, feature, labels):
    with pytest.raises(UserError, match="column 'label' has no label in 2 of 6 rows; choose a set whose rows are all labelled"):
        load_hub(saved(tmp_path / "set", {"label": feature}, label=labels), "set")
