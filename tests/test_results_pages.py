"""The results pages show what is recorded, and a page that does not is found."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "fill_pages.py"


def test_results_pages_show_the_recorded_numbers() -> None:
    run = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_changed_number_in_a_results_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(SCRIPT))
    page = tmp_path / "page.md"
    page.write_text((ROOT / "benchmarks/results/paper.md").read_text().replace("9/0/0", "8/1/0"))
    monkeypatch.setitem(script["main"].__globals__, "PAGES", [page])
    monkeypatch.setattr(sys, "argv", ["fill_pages.py", "--check"])
    assert script["main"]() == 1
