"""The one import line of authors."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(folder: str) -> set[tuple[str, str]]:
    """Files of a folder with the modules that they import from."""
    return {
        (path.name, node.module or "")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }


def test_nothing_of_fedsim_but_the_starter_imports_from_it_and_baselines_import_nothing_else_of_fedsim() -> None:
    users = {file for folder in ("fedsim", "algorithms") for file, module in imported(folder) if module == "fedsim.methods"}
    assert users == {"starter.py"}
    assert {module for _, module in imported("baselines") if module.startswith("fedsim")} == {"fedsim.methods"}
