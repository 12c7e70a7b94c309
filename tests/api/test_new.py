import subprocess
import sys
from pathlib import Path

import pytest
from benches import PATIENCE, no_file_above

import fedsim
from fedsim.api.new import STARTER
from fedsim.errors import UserError
from fedsim.grid.read import load_grid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.*") if "__pycache__" not in path.parts)


def test_a_new_method_is_the_starter_under_its_own_name_beside_two_others(folder: Path) -> None:
    paths = fedsim.new("my-own", out=folder / "deep" / "down").splitlines()
    assert names(folder) == ["my_own.py", "my_own.yaml", "test_my_own.py"]
    assert Path(paths[0]).read_text() == STARTER.read_text().replace("my-method", "my-own").replace("MyMethod", "MyOwn")
    sys.path.append(str(folder / "deep" / "down"))
    assert [entry.display for entry in load_grid(paths[2]).algorithms] == ["my-own", "dp-gaussian", "fedhypevae"]


def test_a_disk_that_gets_full_is_left_without_half_a_method(folder: Path) -> None:
    with no_file_above(len(STARTER.read_bytes()) - 10), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        fedsim.new("my-method", out=folder)
    assert names(folder) == []


@pytest.mark.slow
def test_the_test_of_a_new_method_passes_unedited(folder: Path) -> None:
    fedsim.new("my-method", out=folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(map(str, folder.glob("test_*.py")))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("3-methods", "'3_methods' is not a module's name"),
        ("my/method", "is not a module's name"),
        ("class", "is not a module's name"),
        ("CVAE", "the starter uses 'CVAE' itself"),
        ("dp-gaussian", "there is an algorithm of that name already"),
        ("json", "Python knows another module 'json'"),
    ],
)
def test_a_name_that_is_not_valid_is_refused_and_nothing_is_written(folder: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fedsim.new(name, out=folder / "out")
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(folder: Path) -> None:
    (folder / "my_method.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"my_method.yaml is there already"):
        fedsim.new("my-method", out=folder)
    assert names(folder) == ["my_method.yaml"]
