import sys
from pathlib import Path

import pytest
from benches import run_process

import fedsim
from fedsim.api.new import STARTER
from fedsim.errors import UserError
from fedsim.grid.read import load_grid


def test_new_method_is_the_starter_under_its_own_name(folder: Path) -> None:
    code, test, grid = map(Path, fedsim.new("my-own", out=folder / "deep/down").splitlines())
    starter = STARTER.read_text()
    assert code.read_text() == starter.replace("my-method", "my-own").replace("MyMethod", "MyOwn")
    assert test.name == "test_my_own.py"
    sys.path.append(str(grid.parent))
    labels = [entry.display for entry in load_grid(grid).algorithms]
    assert labels == ["my-own", "dp-gaussian", "fedhypevae"]


@pytest.mark.slow
def test_test_of_a_new_method_passes_unedited(folder: Path) -> None:
    fedsim.new("my-method", out=folder)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "test_my_method.py",
    ]
    done = run_process(command, folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3-methods", "is not valid"),
        ("my/method", "is not valid"),
        ("batch", "'batch' is already the name"),
        ("dp-gaussian", "'dp-gaussian' is already the name"),
        ("json", "'json' is already the name"),
        ("none", "'none' is already the name"),
        ("mine", "already exists"),
    ],
)
def test_name_that_is_not_valid_or_taken_is_refused(folder: Path, name: str, message: str) -> None:
    (folder / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match=message):
        fedsim.new(name, out=folder)
    assert [path.name for path in folder.rglob("*.*")] == ["mine.yaml"]
    assert (folder / "mine.yaml").read_text() == "mine"
