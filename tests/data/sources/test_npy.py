"""Data sets that are folders of .npy files, which are mapped into memory."""

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.data.embeddings import (
    NUMBERS_AT_ONCE,
    Embeddings,
    row_keys,
    shared_rows,
    unit_norm,
)
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError

MANY = 1_000_001
"""A number of rows that no Python loop reads in seconds."""


def arrays_of(
    rows: int = 40,
    dim: int = 5,
) -> dict[str, NDArray[Any]]:
    """Made-up arrays of a data set with three classes, a column and class names."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, dim), dtype=np.float32)
    numbers = np.arange(rows)
    sites = np.array(["north", "south"])
    return {
        "x": x,
        "y": numbers % 3,
        "split": np.where(numbers < rows // 2, 0, 2),
        "site": sites[numbers % 2],
        "class_names": np.array(["a", "b", "c"]),
    }


def save_folder(
    folder: Path,
    arrays: dict[str, NDArray[Any]],
) -> DatasetSpec:
    """Write arrays as a folder of .npy files, and return the data set that it is."""
    path = folder / "rows"
    path.mkdir()
    for name, values in arrays.items():
        np.save(path / f"{name}.npy", values)
    return DatasetSpec(npy=path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("scattered", [False, True])
def test_folder_means_the_same_as_an_npz_file(
    tmp_path: Path,
    dtype: Any,
    scattered: bool,
) -> None:
    arrays = arrays_of()
    arrays["x"] = arrays["x"].astype(dtype)
    if scattered:
        arrays["split"] = np.random.default_rng(1).permutation(arrays["split"])
    file = tmp_path / "rows.npz"
    np.savez(file, **arrays)
    of_file = load(DatasetSpec(npz=file))
    of_folder = load(save_folder(tmp_path, arrays))
    assert of_folder.fingerprint == of_file.fingerprint
    assert of_folder.class_names == of_file.class_names
    assert of_folder.name == of_file.name == "rows"


def test_text_names_the_folder_too() -> None:
    assert DatasetSpec.model_validate("npy:rows").path == Path("rows")


def test_names_are_numbered_with_remap(tmp_path: Path) -> None:
    arrays = arrays_of()
    arrays["y"] = arrays["class_names"][arrays["y"]]
    spec = save_folder(tmp_path, arrays)
    spec = spec.model_copy(update={"remap": True})
    assert load(spec).class_names == ("a", "b", "c")


def test_names_in_bytes_are_read_as_utf_8(tmp_path: Path) -> None:
    arrays = arrays_of()
    names = np.array([b"hund", b"kuh", "löwe".encode()])
    arrays["class_names"] = names
    spec = save_folder(tmp_path, arrays)
    expected = ("hund", "kuh", "löwe")
    assert load(spec).class_names == expected
    np.save(
        tmp_path / "rows" / "y.npy",
        names[arrays["y"]],
    )
    spec = spec.model_copy(update={"remap": True})
    assert load(spec).class_names == expected


def test_public_folder_needs_no_labels(tmp_path: Path) -> None:
    spec = save_folder(tmp_path, {"x": arrays_of()["x"]})
    data = load(spec, public=True)
    assert len(data.x_train) == 39


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "there is no array 'x'"),
        ({"split": None}, "there is no array 'split'"),
        ({"x": np.zeros((0, 5), np.float32)}, "x"),
        ({"site": np.array([None] * 40)}, "site.npy: "),
        ({"x": np.array([[None]])}, "x.npy: "),
    ],
)
def test_wrong_folder_is_refused(
    tmp_path: Path,
    change: dict[str, NDArray[Any] | None],
    message: str,
) -> None:
    arrays = arrays_of() | change
    kept = {name: values for name, values in arrays.items() if values is not None}
    with pytest.raises(UserError, match=message) as caught:
        load(save_folder(tmp_path, kept))
    assert caught.value.where == str(tmp_path / "rows")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(it is no folder\)"):
        load(DatasetSpec(npy=tmp_path / "none"))


def test_large_folder_is_read_within_seconds(tmp_path: Path) -> None:
    spec = save_folder(tmp_path, arrays_of(MANY, 4))
    started = time.process_time()
    data = load(spec)
    assert len(data.x_train) == MANY // 2
    assert data.fingerprint
    assert time.process_time() - started < 20


def refused_in_seconds(spec: DatasetSpec) -> str:
    """The message with which a data set is refused."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load(spec)
    assert time.process_time() - started < 10
    return str(caught.value)


def test_row_of_a_nan_in_a_large_file_is_named(tmp_path: Path) -> None:
    arrays = arrays_of(MANY, 4)
    arrays["x"][1_000_000, 2] = np.nan
    message = refused_in_seconds(save_folder(tmp_path, arrays))
    assert "1 in all, the first in row 1000000" in message


def test_row_of_a_gap_in_the_labels_of_a_large_file_is_named(tmp_path: Path) -> None:
    arrays = arrays_of(MANY, 4)
    arrays["split"] = arrays["split"][::-1]
    arrays["y"][1_000_000] = 4
    message = refused_in_seconds(save_folder(tmp_path, arrays))
    assert "row 1000000 (counted from 0) has label 4 and no training row has label 3" in message


def test_row_of_a_label_that_only_test_rows_have_is_named(tmp_path: Path) -> None:
    arrays = arrays_of(MANY, 4)
    arrays["y"][1_000_000] = 3
    message = refused_in_seconds(save_folder(tmp_path, arrays))
    assert "label 3 occurs in test rows (the first is row 1000000, counted from 0)" in message


def test_blocks_of_rows_are_scaled_as_all_at_once() -> None:
    dim = 7
    rows_at_once = NUMBERS_AT_ONCE // dim
    x = arrays_of(3 * NUMBERS_AT_ONCE // dim, dim)["x"]
    scaled = unit_norm(x)
    for rows in (
        slice(0, 5),
        slice(rows_at_once - 2, rows_at_once + 3),
    ):
        np.testing.assert_array_equal(
            scaled[rows],
            unit_norm(x[rows]),
        )


def test_shared_rows_are_equal_numbers() -> None:
    x = arrays_of()["x"]
    x[3, 0] = 0.0
    others = x[[3, 7]].copy()
    others[0, 0] = -0.0
    others[1, 4] += 1e-6
    assert shared_rows(x, others, row_keys(others)) == [3]


def test_rows_with_equal_keys_by_chance_are_compared() -> None:
    x = arrays_of()["x"]
    same_keys = row_keys(x)
    assert shared_rows(x, x + 1, same_keys) == []


def test_arrays_leave_a_process_without_a_copy(tmp_path: Path) -> None:
    data = load(save_folder(tmp_path, arrays_of()))
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(
        data,
        protocol=5,
        buffer_callback=buffers.append,
    )
    received = pickle.loads(content, buffers=buffers)  # noqa: S301 (made in the line above)
    assert isinstance(received, Embeddings)
    assert np.shares_memory(received.x_train, data.x_train)
    assert np.shares_memory(received.x_test, data.x_test)
