import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim.regular import read_regular, unread


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe"),
    "folder": (os.mkdir, "it is a folder"),
    "socket": (make_socket, "it is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "no such file or directory"),
    "nothing": (lambda path: None, "no such file or directory"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    make, why = OTHERS[kind]
    make(tmp_path / "it")
    with pytest.raises(OSError, match=f"(?i){why}") as caught:
        read_regular(tmp_path / "it")
    assert unread(caught.value) == why


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"


@pytest.mark.parametrize("path", ["a" * 200_000, "a\0b"])
def test_a_path_that_none_can_be_is_an_os_error(path: str) -> None:
    with pytest.raises(OSError, match=r"too long|null (byte|character)"):
        read_regular(path)
