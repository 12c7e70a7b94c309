"""The one import line of authors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedsim.methods
from fedsim.methods import face

ROOT = Path(__file__).parents[2]


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(fedsim.methods, name) is getattr(face, name) for name in face.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'DPSDG'"):
        _ = fedsim.methods.DPSDG


def test_nothing_of_fedsim_but_the_starter_imports_from_it() -> None:
    importers = [
        path.name
        for folder in ("fedsim", "algorithms", "baselines")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in ("fedsim.methods", "fedsim.methods.face")
    ]
    assert sorted(importers) == ["__init__.py", "starter.py"]


def test_a_module_beside_it_loads_no_torch() -> None:
    script = "import sys, fedsim.plugins.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
