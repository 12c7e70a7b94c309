import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from cells import SHIPPED
from test_docs import ROOT

from fedsim.cli import app
from fedsim.data.spec import DatasetSpec
from fedsim.grid.models import Evaluation, Grid, Resources
from fedsim.partition import PartitionSpec
from fedsim.results.columns import COLUMNS

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as strictly as .ci/run builds it: a warning is an error."""
    pytest.importorskip("mkdocs", reason="mkdocs, which builds the site, is not installed (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    # in a process of its own, in which no test has registered a method
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def words_of(page: Path) -> set[str]:
    """What stands in code on a page."""
    return set(re.findall(r"<code>([^<]*)</code>", page.read_text()))


def test_the_reference_has_every_key_of_a_grid(site: Path) -> None:
    keys = {*Grid.model_fields, *Evaluation.model_fields, *Resources.model_fields, *DatasetSpec.model_fields, *PartitionSpec.model_fields}
    assert keys <= words_of(site / "reference/grid.html")


def test_the_reference_has_every_column_of_a_row_and_its_meaning(site: Path) -> None:
    assert set(COLUMNS) <= words_of(site / "reference/columns.html")
    assert "<td></td>" not in (site / "reference/columns.html").read_text()


def test_the_reference_has_every_option_of_every_command(site: Path) -> None:
    page = (site / "reference/commands.html").read_text()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"fedsim {name}" in page
        assert [option for parameter in command.params for option in parameter.opts if option not in page and option.startswith("-")] == []


def test_the_reference_has_every_method(site: Path) -> None:
    page = (site / "reference/methods.html").read_text()
    assert [name for name in SHIPPED if f'<h2 id="{name}">' not in page] == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", page.read_text())
        assert [path for paths in loaded for path in paths if path.startswith(("http", "//"))] == [], page


def test_the_tutorial_is_stored_as_it_ran() -> None:
    cells = [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.slow
def test_the_tutorial_runs_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed (extra docs)")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "under its epsilon" in str(notebook.cells[-2]["outputs"])
    assert "\\toprule" in str([cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"])
