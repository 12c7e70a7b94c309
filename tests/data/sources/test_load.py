import numpy as np
import pytest
from pictures import save_folder, save_medmnist
from pydantic import ValidationError

from fedsim.data.sources.load import image_set, load
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError, at


def file(folder, **changes):
    rng = np.random.default_rng(0)
    held = {
        "x": rng.random((60, 5)).astype(np.float16),
        "y": np.arange(60) % 3,
        "split": np.repeat(np.array([0, 1, 2], np.int8), 20),
        "site": np.repeat(["a", "b"], 30),
        "note": np.array("not a column"),
    } | changes
    path = folder / "toy.npz"
    np.savez(path, **{key: value for key, value in held.items() if value is not None})
    return path


def test_digits_has_a_fixed_stratified_quarter_for_testing():
    data = load(DatasetSpec(name="digits"))
    assert (data.name, data.dim, data.classes) == ("digits", 64, 10)
    assert (len(data.y_train), len(data.y_test)) == (1348, 449)
    shares = np.bincount(data.y_test) / (np.bincount(data.y_train) + np.bincount(data.y_test))
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(data.x_train, axis=1), 1, atol=1e-6)


def test_limit_keeps_a_fixed_stratified_part_of_the_training_rows(tmp_path):
    path = file(tmp_path)
    data, again = (load(DatasetSpec(npz=path, limit=7)) for _ in range(2))
    assert data.name == "toy[:7]"
    assert sorted(np.bincount(data.y_train).tolist()) == [2, 2, 3]
    assert (len(data.y_test), len(data.columns["site"])) == (20, 7)
    assert data.fingerprint == again.fingerprint
    assert len(load(DatasetSpec(npz=path, limit=500)).y_train) == 20
    with pytest.raises(UserError, match="limit 2 leaves some of the 3 classes without a row"):
        load(DatasetSpec(npz=path, limit=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": None},
            "there is no array 'split'; give x [n, d], y [n] and split [n] (it holds note, "
            "site, x, y)",
        ),
        (
            {"site": np.repeat("a", 59)},
            "site has shape [59], so it is no column; give one value per row of x, [60], or "
            "leave it out",
        ),
        (
            {"class_names": np.array(["a", "b"])},
            "class_names has shape [2], and there are 3 classes",
        ),
    ],
)
def test_a_wrong_npz_file_is_named(tmp_path, changes, message):
    path = file(tmp_path, **changes)
    with pytest.raises(UserError) as caught, at("g.yaml:2: dataset"):
        load(DatasetSpec(npz=path))
    assert message in str(caught.value)
    assert caught.value.where == f"g.yaml:2: dataset: {path}"


def test_damage_of_a_file_is_reported_in_one_line(tmp_path):
    whole = file(tmp_path).read_bytes()
    start = whole.index(b"x.npy") + 200
    turned = (
        whole[:start]
        + bytes(byte ^ 0x5A for byte in whole[start : start + 100])
        + whole[start + 100 :]
    )
    for content in (
        turned,
        whole.replace(b"'descr'", b"'des((r"),
        whole.replace(b"'<f2'", b"'|O' "),
        whole[:500],
        b"\x93NUMPY",
    ):
        (tmp_path / "toy.npz").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read") as caught:
            load(DatasetSpec(npz=tmp_path / "toy.npz"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("a/b.npz", r"write \{npz: a/b.npz\}"),
        ({}, "names no data"),
        ({"name": "digits", "size": 64}, "'digits' takes no size; it is for medmnist"),
        ({"csv": "a.csv", "npz": "a.npz"}, "names npz and csv; give one of them"),
        (
            {"npz": "a.npz", "split": {"by": "site"}},
            "'a' holds embeddings and takes no split, which is for images",
        ),
        ({"csv": "a.csv", "encoder": {}}, "names no encoder or two; give a name"),
        ({"csv": "a.csv", "encoder": {"name": "a", "size": 112}}, "a named encoder takes no size"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        DatasetSpec.model_validate(spec)


def test_labels_can_be_remapped(tmp_path):
    path = file(tmp_path, y=np.array(["lung", "heart", "skin"])[np.arange(60) % 3])
    data = load(DatasetSpec(npz=path, remap=True))
    assert data.y_train[:3].tolist() == [1, 0, 2]


def test_names_in_y_are_refused_with_what_is_right(tmp_path):
    names = np.array(["lung", "heart", "skin"])[np.arange(60) % 3]
    with pytest.raises(UserError) as caught:
        load(DatasetSpec(npz=file(tmp_path, y=names)))
    assert "y holds names, such as 'lung'" in str(caught.value)
    assert "give remap: true beside npz, which numbers the names in sorted order" in str(
        caught.value
    )


def test_python_objects_in_an_array_are_told_by_its_name(tmp_path):
    names = np.array(["lung", "heart", "skin"], dtype=object)[np.arange(60) % 3]
    with pytest.raises(UserError) as caught:
        load(DatasetSpec(npz=file(tmp_path, y=names)))
    assert "the array 'y' holds Python objects, which are not read" in str(caught.value)
    assert "save texts as y.astype(str)" in str(caught.value)


def test_an_npy_file_as_data_is_told_what_to_give(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 2)))
    with pytest.raises(UserError) as caught:
        load(DatasetSpec(npz=tmp_path / "rows.npy"))
    assert str(caught.value) == (
        f"{tmp_path / 'rows.npy'}: cannot be read (it is a .npy file, which holds one array); give "
        "an .npz file of plain arrays x, y and split, as numpy.savez writes it"
    )


def test_an_npy_file_as_a_data_set_s_name_is_told_what_to_give():
    with pytest.raises(ValidationError, match=r"an \.npy file holds one array; give \{npz: FILE\}"):
        DatasetSpec.model_validate("rows.npy")


def test_training_rows_that_are_test_rows_too_are_an_error_unless_it_is_said_what_to_do(tmp_path):
    x = np.random.default_rng(1).random((60, 5), np.float32)
    x[[4, 7]] = x[[45, 41]]
    path = file(tmp_path, x=x)
    with pytest.raises(
        UserError,
        match=r"2 training rows are test rows too, the first is training row 4; give overlap: drop",
    ):
        load(DatasetSpec(npz=path))
    dropped = load(DatasetSpec(npz=path, overlap="drop"))
    assert (len(dropped.y_train), len(dropped.columns["site"]), len(dropped.y_test)) == (18, 18, 20)
    assert len(load(DatasetSpec(npz=path, overlap="keep")).y_train) == 20


def test_equal_images_of_one_file_of_arrays_are_found_too(tmp_path):
    path = save_medmnist(tmp_path / "organamnist.npz")
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    arrays["test_images"][7] = arrays["train_images"][3]
    np.savez_compressed(path, **arrays)
    spec = {"name": "medmnist:organamnist", "root": tmp_path}
    with pytest.raises(
        UserError, match=r"1 training rows are test rows too, the first is train_images\[3\]"
    ):
        image_set(DatasetSpec(**spec, overlap="error"))
    whole, dropped = (image_set(DatasetSpec(**spec, overlap=policy)) for policy in ("keep", "drop"))
    assert (len(whole), len(dropped)) == (102, 101)
    assert 3 not in dropped.rows


TABLE = "path,label,patient\n" + "".join(
    f"{kind}/{n}.png,{kind},p{n // 2}\n" for kind in ("cat", "dog", "eel") for n in range(8)
)


def test_a_quarter_of_a_columns_values_can_be_for_testing(tmp_path, encoder):
    (save_folder(tmp_path / "pets") / "pets.csv").write_text(TABLE)
    spec = {"csv": tmp_path / "pets/pets.csv", "split": {"by": "patient"}}
    images, again = (image_set(DatasetSpec(**spec)) for _ in range(2))
    sides = [set(images.columns["patient"][images.split == part]) for part in (TRAIN, TEST)]
    assert [len(side) for side in sides] == [3, 1]
    assert not sides[0] & sides[1]
    np.testing.assert_array_equal(images.split, again.split)
    data = load(DatasetSpec(**spec, encoder=encoder))
    assert set(data.test_columns["patient"]) == sides[1]
