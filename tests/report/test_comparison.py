import io

import pytest
from fedsim.report.comparison import compare_folders
from rich.console import Console
from rows import add_lines, add_rows

from fedsim.errors import UserError


def folder_with(path, rows, records=()):
    add_rows(path, *rows)
    add_lines(path / "rounds.jsonl", records)
    return path


def shown(first, second):
    console = Console(file=io.StringIO(), width=200)
    compare_folders(first, second).show(console)
    return console.file.getvalue()


def test_a_copy_is_equal_in_everything(tmp_path, quickstart):
    a, b = (folder_with(tmp_path / name, quickstart) for name in ("a", "b"))
    assert compare_folders(a, b).comparison.equal
    assert "equal to the last bit: everything (42 rows), all fields but wall time and the hash of a saved generator" in shown(a, b)
    assert "equal in 0 of these 14 settings; 14 have none" in shown(a, b)


def test_what_is_only_in_one_and_what_moved_is_told(tmp_path, row):
    moved = [row(cell_id="m", label="moved", balanced_accuracy=value) for value in (0.5, 0.625)]
    first = folder_with(tmp_path / "a", [row(), moved[0], row(cell_id="x", seed=3), row(cell_id="y", seed=4)])
    second = folder_with(tmp_path / "b", [row(versions={"fedsim": "0.2.0"}), moved[1]])
    text = shown(first, second)
    assert f"only in {first}: fedhypevae · digits · dirichlet · α = 0.1 · 10 clients · ε = 1 · seeds 3, 4" in text
    assert "fedsim: 0.1.0 → 0.2.0" in text
    (line,) = (line for line in text.splitlines() if line.startswith(" moved") or line.startswith("moved"))
    assert [part in line for part in ("+0.125", "0.125", "balanced_accuracy")] == [True] * 3
    assert "equal to the last bit: 1 of 2 shared settings (1 row), scores and budgets" in text


def test_settings_that_differ_in_a_parameter_alone_are_told_apart(tmp_path, row):
    first = folder_with(tmp_path / "a", [row(), row(cell_id="x", params={"rounds": 41})])
    second = folder_with(tmp_path / "b", [row()])
    assert f"only in {first}: fedhypevae (rounds=41) · digits" in shown(first, second)


def test_two_runs_that_share_nothing_or_a_folder_without_results_are_mistakes(tmp_path, row):
    first, second = folder_with(tmp_path / "a", [row()]), folder_with(tmp_path / "b", [row(seed=1)])
    with pytest.raises(UserError, match="no setting and seed is in both"):
        compare_folders(first, second)
    with pytest.raises(UserError, match="there are no results here"):
        compare_folders(first, tmp_path / "none")
    assert not (tmp_path / "none").exists()
