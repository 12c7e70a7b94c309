"""What all faults share: a small grid and its rows when nothing disturbs it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from benches import TIMES, Ran
from processes import GRID

from fedsim.grid.models import Grid
from fedsim.training import checkpoint

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def hostile(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of hostile plug-ins, as a grid of the shared cluster names it; its import changes this process, too."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", checkpoint.CHECKPOINT_SECONDS)
    shutil.copy(Path(__file__).with_name("hostile.py"), plugins)
    return "hostile"


@pytest.fixture
def undisturbed(bench: Callable[..., Ran], tmp_path: Path) -> tuple[Rows, list[dict[str, Any]]]:
    """Rows and round records of the grid, without wall time, as a bench without any fault writes them."""
    ran = bench(Grid.model_validate(yaml.safe_load(GRID)), "undisturbed")
    rows = {row.cell_id: row.model_dump(exclude={*TIMES}) for row in ran.rows}
    return rows, sorted(ran.rounds, key=lambda record: (record["cell_id"], record["round"]))


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """The folder that holds the grid."""
    (tmp_path / "g.yaml").write_text(GRID)
    return tmp_path
