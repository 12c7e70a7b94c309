import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cells import NODES, small_grid

from fedsim.planning.prepare import prepare
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import read_manifest
from fedsim.runs import manifest

PACKAGE = Path(manifest.__file__).parents[1]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_revision_is_of_a_checkout_of_fedsim_and_of_no_other(tmp_path: Path) -> None:
    def told(*command: str | Path) -> str:
        variables = {**os.environ, "PYTHONPATH": str(tmp_path / "packages")}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout.strip()

    def commit() -> None:
        told("git", "add", ".")
        told("git", "-c", "user.name=me", "-c", "user.email=me@here", "commit", "-qm", "a project")

    asked = (sys.executable, "-c", "from fedsim.runs.manifest import revision; print(revision())")
    shutil.copytree(PACKAGE, tmp_path / "packages" / "fedsim", ignore=shutil.ignore_patterns("__pycache__"))
    ignored = tmp_path / ".gitignore"
    ignored.write_text("__pycache__\npackages\n")
    told("git", "init", "-q")
    commit()
    assert told(*asked) == "None"
    ignored.write_text("__pycache__\n")
    commit()
    assert told(*asked) == told("git", "rev-parse", "--short=12", "HEAD")


def test_a_manifest_says_what_each_method_is_and_which_paper_it_follows(tmp_path: Path) -> None:
    prepared = prepare(small_grid("fedhypevae", "dp-gaussian"), NODES)
    manifest.write_manifest(folder := RunFolder(tmp_path), prepared, [])
    first, second = read_manifest(folder.path)["methods"]
    assert (first["label"], first["source"], first["text"][:13]) == ("fedhypevae", "arXiv 2601.00785", "Negative ELBO")
    assert (second["label"], "`" in second["text"], "1805.06530" in second["source"]) == ("dp-gaussian", False, True)
