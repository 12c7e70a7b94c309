import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from fedsim.config import load_grid

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = [line.strip() for page in PAGES for line in page.read_text().splitlines() if line.startswith("    fedsim ")]


def test_the_pages_hold_commands() -> None:
    assert COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_runs(command: str) -> None:
    done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ε reached" in done.stdout


def test_the_grid_of_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "grid.md").read_text(), re.S)
    grid = yaml.safe_load(text)
    grid["algorithms"].remove("my_file:MyMethod")
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    assert load_grid(tmp_path / "g.yaml").name == "my-grid"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
