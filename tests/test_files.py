from pathlib import Path

import pytest

from fedsim.files import discard, replaced


def test_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replaced(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def write_half(path: Path) -> None:
    with replaced(path) as part:
        part.write_text("half")
        path.parent.write_text("a folder is no file")


def test_failed_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(IsADirectoryError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_discard_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    path = tmp_path / "cell.safetensors"
    other = tmp_path / "cell2.safetensors"
    for file in (path, tmp_path / ".cell.safetensors.123.part", other):
        file.write_text("private")
    discard(path)
    assert list(tmp_path.iterdir()) == [other]
