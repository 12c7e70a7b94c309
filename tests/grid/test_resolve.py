from pathlib import Path

import pytest
from plug_ins import GOOD, write

from fedsim.errors import PluginError
from fedsim.grid.models import Grid
from fedsim.grid.resolve import resolve


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return write(tmp_path, "cannot_be_imported", GOOD + "\nraise RuntimeError('half written')\n")


def test_a_refused_plug_in_is_left_out_only_when_the_rest_is_to_go_on(broken: str) -> None:
    grid = Grid.model_validate({"algorithms": [broken, "dp-gaussian"], "epsilon": [1, 4]})
    with pytest.raises(PluginError, match="half written"):
        resolve(grid)
    resolved = resolve(grid, keep_going=True)
    assert list(resolved.refused) == [0]
    assert [(each.entry, each.label) for each in resolved.variants] == [(1, "dp-gaussian")]
    assert resolved.grid is grid


def test_a_grid_of_refused_plug_ins_alone_is_the_first_one_s_error(broken: str) -> None:
    with pytest.raises(PluginError, match=r"algorithms\[0\]"):
        resolve(Grid.model_validate({"algorithms": [broken]}), keep_going=True)
