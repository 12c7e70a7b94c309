import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.results.folder import RunFolder


def test_the_names_of_a_run_folder_are_those_that_readers_of_earlier_runs_know() -> None:
    run = RunFolder(Path("/runs/quickstart"))
    found = [run.results, run.rounds, run.summary, run.manifest, run.partitions, run.page, run.curves, run.generators, run.lock]
    files = ["results.jsonl", "rounds.jsonl", "summary.csv", "manifest.json", "partitions.json", "report.html"]
    assert [str(path.relative_to(run.path)) for path in found] == [*files, "curves", "generators", ".lock"]
    cells = [run.checkpoint("a"), run.log("a"), run.generator("a")]
    assert [str(path.relative_to(run.path)) for path in cells] == ["checkpoints/a.safetensors", "logs/a.log", "generators/a.json"]


def test_a_folder_without_results_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no results\.jsonl here"):
        RunFolder(tmp_path).check()


def test_writing_a_manifest_needs_no_drawing() -> None:
    asked = "import sys, fedsim.runs.manifest; sys.exit('fedsim.report' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
