import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.errors import UserError
from fedsim.results.store import RunFolder


def test_the_names_of_a_run_folder_are_those_that_readers_of_earlier_runs_know() -> None:
    run = RunFolder(Path("/runs/quickstart"))
    found = [run.results, run.clients, run.summary, run.manifest, run.partitions, run.page, run.curves, run.trained, run.lock]
    files = ["results.jsonl", "clients.jsonl", "summary.csv", "manifest.json", "partitions.json", "report.html"]
    assert [str(path.relative_to(run.path)) for path in found] == [*files, "curves", "trained", ".lock"]
    cells = [run.checkpoint("a"), run.log("a"), run.state("a"), run.lines("trainings")]
    assert [str(path.relative_to(run.path)) for path in cells] == [
        "checkpoints/a.safetensors",
        "logs/a.log",
        "trained/a.safetensors",
        "trainings.jsonl",
    ]


def test_a_folder_without_results_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no results here"):
        RunFolder(tmp_path).check()


def test_writing_a_manifest_needs_no_drawing() -> None:
    asked = "import sys, fedsim.runs.manifest; sys.exit('fedsim.report' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
