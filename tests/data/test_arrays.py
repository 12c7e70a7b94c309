"""Files of arrays as they really break."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.sources.npz import load_embedding_file
from fedsim.errors import UserError

HELD = {
    "x": np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32),
    "y": np.arange(60) % 3,
    "split": np.repeat([0, 2], [40, 20]),
}


def archive(method: int = zipfile.ZIP_DEFLATED, change: Callable[[bytes], bytes] = lambda member: member) -> bytearray:
    """An ``.npz`` file, whose member ``x`` is changed before it is packed."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as file:
        for name, values in HELD.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, values)
            file.writestr(f"{name}.npy", change(member.getvalue()) if name == "x" else member.getvalue())
    return bytearray(whole.getvalue())


def damaged(method: int) -> bytearray:
    """With bytes of the compressed stream turned over."""
    content = archive(method)
    start = content.index(b"x.npy") + 200
    for place in range(start, start + 700, 7):
        content[place] ^= 0x5A
    return content


BROKEN = {
    "a damaged deflate stream": damaged(zipfile.ZIP_DEFLATED),
    "a broken header": archive(change=lambda member: member.replace(b"'descr'", b"'des((r")),
    "half a file": archive()[:500],
    "an array of objects": archive(change=lambda member: member.replace(b"'<f4'", b"'|O' ")),
    "no file of arrays": b"\x93NUMPY",
}


@pytest.mark.parametrize("what", BROKEN)
def test_damage_is_reported_in_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.npz").write_bytes(BROKEN[what])
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_embedding_file(tmp_path / "a.npz", "a")
    assert "\n" not in str(caught.value)
