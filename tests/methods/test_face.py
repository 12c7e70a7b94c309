"""The one import line of authors."""

import ast
from pathlib import Path

import pytest

import fedsim.methods
from fedsim.methods import face

ROOT = Path(__file__).parents[2]


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(fedsim.methods, name) is getattr(face, name) for name in vars(face) if not name.startswith("_"))
    with pytest.raises(AttributeError, match="has no attribute 'DPSDG'"):
        _ = fedsim.methods.DPSDG


def imported(folder: str) -> set[tuple[str, str]]:
    """Files of a folder with the modules that they import from."""
    return {
        (path.name, node.module or "")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }


def test_nothing_of_fedsim_but_the_starter_imports_from_it_and_baselines_import_nothing_else_of_fedsim() -> None:
    faces = ("fedsim.methods", "fedsim.methods.face")
    assert {file for folder in ("fedsim", "algorithms") for file, module in imported(folder) if module in faces} == {
        "__init__.py",
        "starter.py",
    }
    assert {module for _, module in imported("baselines") if module.startswith("fedsim")} == {"fedsim.methods"}
