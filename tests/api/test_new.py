import subprocess
import sys
from pathlib import Path

import pytest
from benches import PATIENCE

import fedsim
from fedsim.api.new import STARTER
from fedsim.errors import UserError
from fedsim.grid.read import load_grid


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.*") if "__pycache__" not in path.parts)


def test_a_new_method_is_the_starter_under_its_own_name_beside_two_others(folder: Path) -> None:
    paths = fedsim.new("my-own", out=folder / "deep" / "down").splitlines()
    assert names(folder) == ["my_own.py", "my_own.yaml", "test_my_own.py"]
    assert Path(paths[0]).read_text() == STARTER.read_text().replace("my-method", "my-own").replace(
        "MyMethod", "MyOwn"
    )
    sys.path.append(str(folder / "deep" / "down"))
    assert [entry.display for entry in load_grid(paths[2]).algorithms] == [
        "my-own",
        "dp-gaussian",
        "fedhypevae",
    ]


@pytest.mark.slow
def test_the_test_of_a_new_method_passes_unedited(folder: Path) -> None:
    fedsim.new("my-method", out=folder)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *sorted(map(str, folder.glob("test_*.py"))),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["3-methods", "my/method", "batch", "dp-gaussian", "json", "mine"])
def test_a_name_that_is_not_valid_or_taken_is_refused_and_nothing_is_overwritten(
    folder: Path, name: str
) -> None:
    (folder / "mine.yaml").write_text("mine")
    if name in ("3-methods", "my/method"):
        said = "is not valid"
    elif name == "mine":
        said = "exists already"
    else:
        said = f"'{name}' already"
    with pytest.raises(UserError, match=f"^name: .*{said}"):
        fedsim.new(name, out=folder)
    assert names(folder) == ["mine.yaml"]
