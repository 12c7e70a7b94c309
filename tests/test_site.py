import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


def test_reference_pages_are_what_the_code_says() -> None:
    """Else: ``python docs/hooks/reference.py``."""
    # in a process of its own, in which no test has registered a method
    code = (
        "from reference import GENERATED, PAGES, made; print(*(p for p in GENERATED if (PAGES "
        "/ f'{p}.md').read_text() != made(p)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "docs/hooks",
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == []


def test_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    # A warning is an error, as in .ci/run.
    pytest.importorskip(
        "mkdocs", reason="mkdocs, which builds the site, is not installed (extra docs)"
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "-q",
            "-d",
            str(tmp_path),
        ],
        cwd=ROOT,
        check=True,
    )
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)",
            page.read_text(),
        )
        assert [
            path for paths in loaded for path in paths if path.startswith(("http", "//"))
        ] == [], page


def test_tutorial_is_stored_as_it_ran() -> None:
    cells = [
        cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"
    ]
