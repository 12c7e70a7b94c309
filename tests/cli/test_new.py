import ast
import subprocess
import sys
from pathlib import Path

import pytest
from benches import PATIENCE, no_file_above
from cells import SHIPPED, quick, small_cells

from fedsim.cli.new import STARTER, write_method
from fedsim.errors import UserError
from fedsim.grid.read import load_grid
from fedsim.plugins.registry import lookup


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.*") if "__pycache__" not in path.parts)


def code_of(text: str) -> list[str]:
    """Lines without blanks, comments, docstrings and imports."""
    nodes = list(ast.walk(ast.parse(text)))
    docstrings = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    left_out = {number for node in [*docstrings, *imports] for number in range(node.lineno, (node.end_lineno or 0) + 1)}
    numbered = enumerate(text.splitlines(), 1)
    return [line for number, line in numbered if number not in left_out and line.strip() and not line.strip().startswith("#")]


def test_the_starter_is_at_most_35_lines_of_code_and_imports_from_one_module_of_fedsim() -> None:
    text = STARTER.read_text()
    assert 15 < len(code_of(text)) <= 35
    modules = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and "fedsim" in (node.module or "")]
    assert modules == ["fedsim.methods"]


def test_a_new_method_is_the_starter_under_its_own_name(folder: Path) -> None:
    paths = write_method("my-own", None, folder / "deep" / "down")
    assert names(folder) == ["my_own.py", "my_own.yaml", "test_my_own.py"]
    assert paths[0].read_text() == STARTER.read_text().replace("my-method", "my-own").replace("MyMethod", "MyOwn")


def test_a_disk_that_gets_full_is_left_without_half_a_method(folder: Path) -> None:
    with no_file_above(len(STARTER.read_bytes()) - 10), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        write_method("my-method", None, folder)
    assert names(folder) == []


def test_a_copy_of_every_algorithm_trains_and_samples_in_its_rehearsal(folder: Path) -> None:
    sys.path.append(str(folder))
    for name in SHIPPED:
        source, _, grid = write_method(f"new-{name}", name, folder)
        assert source.read_text().startswith("# What ")
        entry, *_ = load_grid(grid).algorithms
        assert lookup(entry.name).__module__ == source.stem
        assert small_cells(quick(entry.name)).refused == {}


@pytest.mark.parametrize("origin", ["fedavg-linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dp-gaussian", None))])
def test_the_test_of_a_new_method_passes_unedited(folder: Path, origin: str | None) -> None:
    write_method("my-method", origin, folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(map(str, folder.glob("test_*.py")))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_grid_has_the_method_beside_two_others(folder: Path) -> None:
    *_, path = write_method("my-method", None, folder)
    sys.path.append(str(folder))
    grid = load_grid(path)
    assert [entry.label or entry.name for entry in grid.algorithms] == ["my-method", "dp-gaussian", "fedhypevae"]


@pytest.mark.parametrize("name", ["yes", "no", "on", "off", "null"])
def test_a_name_that_yaml_has_a_meaning_for_is_a_label(folder: Path, name: str) -> None:
    entry, *_ = load_grid(write_method(name, None, folder)[-1]).algorithms
    assert entry.label == name


def test_the_name_of_the_program_itself_is_taken(folder: Path) -> None:
    script = """
from pathlib import Path
from fedsim.errors import UserError
from fedsim.cli.new import write_method
try:
    write_method("__main__", None, Path("."))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "fedsim new __main__: Python knows another module '__main__'; give another name\n", done.stderr


def test_a_copy_says_what_its_base_class_asks_for(folder: Path) -> None:
    text = write_method("mine", "dp-gaussian", folder)[0].read_text()
    comments = text[: text.index('"""')]
    assert comments.startswith("# What OneShot asks of this file:\n#\n# Base class of an algorithm that releases statistics")
    assert "# statistics(self): What is released, one after another; shares add up to 1" in comments
    assert '@register("mine")\nclass Mine(OneShot):' in text
    assert "Params: ClassVar[type[MineParams]] = MineParams" in text
    assert "DPGaussian" not in text.replace("DP-Gaussian", "")


@pytest.mark.parametrize(
    ("name", "origin", "said"),
    [
        ("3-methods", None, "'3_methods' is not a module's name"),
        ("my/method", None, "is not a module's name"),
        ("class", None, "is not a module's name"),
        ("-", None, "'_' is not a module's name"),
        ("none", None, "'none' is not a module's name"),
        ("a" * 248, None, "a file's name would have more than 255 letters; give a shorter name"),
        ("CVAE", None, "the starter uses 'CVAE' itself"),
        ("dp-gaussian", None, "there is an algorithm of that name already"),
        ("json", None, "Python knows another module 'json'"),
        ("mine", "dp-gausian", "did you mean 'dp-gaussian'"),
        ("params", "dp-gaussian", "baselines.dp_gaussian uses 'Params' itself"),
    ],
)
def test_a_name_that_does_not_do_is_refused_and_nothing_is_written(folder: Path, name: str, origin: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        write_method(name, origin, folder / "out")
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(folder: Path) -> None:
    (folder / "my_method.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"my_method.yaml is there already"):
        write_method("my-method", None, folder)
    assert names(folder) == ["my_method.yaml"]
    (folder / "other.py").symlink_to(folder / "elsewhere")
    with pytest.raises(UserError, match=r"other.py is there already"):
        write_method("other", None, folder)
    assert not (folder / "elsewhere").exists()
