import numpy as np
import pytest
from pictures import save_folder, save_medmnist
from pydantic import ValidationError

from fedsim.data.sources.load import image_set, load
from fedsim.data.spec import DatasetSpec
from fedsim.data.split import TEST, TRAIN
from fedsim.errors import UserError, at

LABELS = np.arange(60) % 3
NAMES = np.array(["lung", "heart", "skin"])[LABELS]
X = np.random.default_rng(0).random((60, 5))


def save(folder, **changes):
    """A valid file ``toy.npz`` with changed arrays; None leaves an array out."""
    arrays = {
        "x": X.astype(np.float16),
        "y": LABELS,
        "split": np.repeat(np.array([0, 1, 2], np.int8), 20),
        "site": np.repeat(["a", "b"], 30),
        "note": np.array("not a column"),
    } | changes
    path = folder / "toy.npz"
    np.savez(
        path,
        **{name: array for name, array in arrays.items() if array is not None},
    )
    return path


def load_npz(path, **keys):
    return load(DatasetSpec(npz=path, **keys))


def test_digits_has_a_fixed_stratified_quarter_for_testing():
    data = load(DatasetSpec(name="digits"))
    tested = np.bincount(data.y_test)
    assert data.name == "digits"
    assert data.x_train.shape == (1348, 64)
    assert data.x_test.shape == (449, 64)
    np.testing.assert_allclose(
        tested / (tested + np.bincount(data.y_train)),
        0.25,
        atol=0.01,
    )
    np.testing.assert_allclose(
        np.linalg.norm(data.x_train, axis=1),
        1,
        atol=1e-6,
    )


def test_limit_keeps_a_fixed_stratified_part_of_the_training_rows(tmp_path):
    path = save(tmp_path)
    data = load_npz(path, limit=7)
    assert data.name == "toy[:7]"
    assert sorted(np.bincount(data.y_train)) == [2, 2, 3]
    assert len(data.columns["site"]) == 7
    assert len(data.y_test) == 20
    assert data.fingerprint == load_npz(path, limit=7).fingerprint


def test_a_limit_above_the_number_of_rows_keeps_all(tmp_path):
    assert len(load_npz(save(tmp_path), limit=500).y_train) == 20


def test_a_limit_below_the_number_of_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match="limit 2 leaves some of the 3 classes without a row"):
        load_npz(save(tmp_path), limit=2)


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
        (
            {"y": NAMES},
            "y holds names, such as 'lung'; give remap: true beside npz, which numbers the names "
            "in sorted order",
        ),
        (
            {"y": NAMES.astype(object)},
            "the array 'y' holds Python objects, which are not read; save texts as y.astype(str)",
        ),
    ],
)
def test_a_wrong_npz_file_is_named(tmp_path, changes, message):
    path = save(tmp_path, **changes)
    with pytest.raises(UserError) as caught, at("g.yaml:2: dataset"):
        load_npz(path)
    assert message in str(caught.value)
    assert caught.value.where == f"g.yaml:2: dataset: {path}"


def turn_bits(content):
    """The content with 100 damaged bytes within the array ``x``."""
    start = content.index(b"x.npy") + 200
    damaged = bytes(byte ^ 0x5A for byte in content[start : start + 100])
    return content[:start] + damaged + content[start + 100 :]


@pytest.mark.parametrize(
    "damage",
    [
        turn_bits,
        lambda content: content.replace(b"'descr'", b"'des((r"),
        lambda content: content.replace(b"'<f2'", b"'|O' "),
        lambda content: content[:500],
        lambda content: b"\x93NUMPY",
    ],
    ids=["bits", "head", "type", "half", "start"],
)
def test_damage_of_a_file_is_reported_in_one_line(tmp_path, damage):
    path = save(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_npz(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("a/b.npz", r"write \{npz: a/b.npz\}"),
        ("rows.npy", r"an \.npy file holds one array; give \{npz: FILE\}"),
        ({}, "names no data"),
        ({"name": "digits", "size": 64}, "'digits' takes no size; it is for medmnist"),
        ({"csv": "a.csv", "npz": "a.npz"}, "names npz and csv; give one of them"),
        (
            {"npz": "a.npz", "split": {"by": "site"}},
            "'a' holds embeddings and takes no split, which is for images",
        ),
        ({"npz": "a.npz", "skip_bad": True}, "'a' holds embeddings and takes no skip_bad"),
        ({"csv": "a.csv", "encoder": {}}, "names no encoder; give name: NAME or onnx: FILE"),
        (
            {"csv": "a.csv", "encoder": {"name": "dinov2-small", "onnx": "a.onnx"}},
            "names two encoders; give name: or onnx:, not both",
        ),
        ({"csv": "a.csv", "encoder": {"name": "a", "size": 112}}, "a named encoder takes no size"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        DatasetSpec.model_validate(spec)


def test_labels_can_be_remapped(tmp_path):
    data = load_npz(save(tmp_path, y=NAMES), remap=True)
    assert data.y_train[:3].tolist() == [1, 0, 2]
    assert data.class_names == ("heart", "lung", "skin")


def test_the_message_about_an_npy_file_says_what_to_give(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((3, 2)))
    with pytest.raises(UserError) as caught:
        load_npz(path)
    assert str(caught.value) == (
        f"{path}: cannot be read (it is a .npy file, which holds one array); give "
        "an .npz file of plain arrays x, y and split, as numpy.savez writes it"
    )


@pytest.fixture
def overlapping(tmp_path):
    """A file in which training rows 4 and 7 are test rows too."""
    x = X.copy()
    x[[4, 7]] = x[[45, 41]]
    return save(tmp_path, x=x)


def test_training_rows_that_are_test_rows_are_an_error(overlapping):
    problem = r"2 training rows are test rows too, the first is training row 4; give overlap: drop"
    with pytest.raises(UserError, match=problem):
        load_npz(overlapping)


def test_overlap_drop_removes_training_rows(overlapping):
    data = load_npz(overlapping, overlap="drop")
    assert len(data.y_train) == 18
    assert len(data.columns["site"]) == 18
    assert len(data.y_test) == 20


def test_overlap_keep_keeps_all_rows(overlapping):
    assert len(load_npz(overlapping, overlap="keep").y_train) == 20


@pytest.fixture
def overlapping_organs(tmp_path):
    """A MedMNIST file in which training image 3 is a test image too; returns its folder."""
    path = save_medmnist(tmp_path / "organamnist.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["test_images"][7] = arrays["train_images"][3]
    np.savez_compressed(path, **arrays)
    return tmp_path


def organs(root, overlap):
    return image_set(DatasetSpec(name="medmnist:organamnist", root=root, overlap=overlap))


def test_equal_images_of_one_archive_are_an_error(overlapping_organs):
    problem = r"1 training rows are test rows too, the first is train_images\[3\]"
    with pytest.raises(UserError, match=problem):
        organs(overlapping_organs, "error")


def test_equal_images_of_one_archive_can_be_dropped(overlapping_organs):
    everything = organs(overlapping_organs, "keep")
    dropped = organs(overlapping_organs, "drop")
    assert np.setdiff1d(everything.rows, dropped.rows).tolist() == [3]


@pytest.fixture
def by_patient(tmp_path):
    """A table whose test images are chosen by the column ``patient``."""
    save_folder(tmp_path)
    lines = ["path,label,patient"]
    for kind in ("cat", "dog", "eel"):
        lines += [f"{kind}/{n}.png,{kind},p{n // 2}" for n in range(8)]
    (tmp_path / "pets.csv").write_text("\n".join(lines) + "\n")
    return DatasetSpec(csv=tmp_path / "pets.csv", split={"by": "patient"})


def test_a_quarter_of_a_columns_values_can_be_for_testing(by_patient):
    images = image_set(by_patient)
    trained = set(images.columns["patient"][images.split == TRAIN])
    tested = set(images.columns["patient"][images.split == TEST])
    assert len(trained) == 3
    assert len(tested) == 1
    assert not trained & tested
    np.testing.assert_array_equal(images.split, image_set(by_patient).split)


def test_embeddings_keep_the_split_by_a_column(by_patient, encoder):
    images = image_set(by_patient)
    data = load(by_patient.model_copy(update={"encoder": encoder}))
    tested = set(images.columns["patient"][images.split == TEST])
    assert set(data.test_columns["patient"]) == tested
