"""Checkpoints of a running cell: tensors as safetensors, the rest as JSON in its header; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsim.device import bytes_of
from fedsim.files import discard, replaced, unread
from fedsim.methods.messages import Tensors
from fedsim.training.state import Checkpoint, described

FACTS = ("round", "ledger", "uplink_bytes", "downlink_bytes", "secret")
"""What a checkpoint holds beside tensors."""
EVERY = 30.0
"""Seconds between checkpoints."""


def packed(progress: Checkpoint, owner: str) -> bytes:
    """A checkpoint as one safetensors file with its own hash; private client state is in it, and the root of secret noise.

    Args:
        progress: where a cell stands.
        owner: the cell's id.
    """
    facts = {name: getattr(progress, name) for name in FACTS}
    tensors = {name: value.contiguous() for name, value in progress.tensors.items()}
    return save(tensors, {"progress": json.dumps(facts), "sha256": _digest(owner, facts, tensors)})


def unpacked(content: bytes, owner: str) -> Checkpoint | None:
    """The checkpoint that :func:`packed` made; None, with a warning, if anything in it is not what was saved of this cell."""
    try:
        tensors = {name: value.clone() for name, value in load(content).items()}
        # the header, whose length comes first, holds the facts
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        facts = json.loads(header["progress"])
        if header["sha256"] != _digest(owner, facts, tensors):
            raise ValueError("its facts and tensors are not those that were saved of this cell")
        return Checkpoint(tensors=tensors, **{name: facts[name] for name in FACTS})
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        warnings.warn(f"the checkpoint cannot be used ({unread(error)}); the cell begins again", stacklevel=2)
        return None


def _digest(owner: str, facts: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 of the cell's id, the facts and every tensor's name, dtype, shape and values."""
    digest = hashlib.sha256(json.dumps([owner, facts, described(tensors)]).encode())
    for _, value in sorted(tensors.items()):
        digest.update(bytes_of(value).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoint file of one cell; a new one replaces the old one at once or not at all.

    Args:
        path: the file; its folder is made when the first checkpoint is written.
        every: seconds between checkpoints; default: :data:`EVERY`.
        owner: the cell's id; no other cell goes on from here.
    """

    def __init__(self, path: Path, every: float | None = None, owner: str = "") -> None:
        self.path, self.every, self.owner = path, every, owner
        self._last = time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint if enough time has passed since the last one; a cell can do without one that cannot be written."""
        if time.monotonic() - self._last >= (EVERY if self.every is None else self.every):
            try:
                self.save(capture())
            except OSError as error:
                warnings.warn(f"{self.path} cannot be written ({unread(error)}); the cell goes on without a new checkpoint", stacklevel=2)
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Write ``progress``, for the owner's eyes alone.

        Raises:
            OSError: the file cannot be written.
        """
        keep(self.path, packed(progress, self.owner))

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none, or it is not what was saved of this cell."""
        content = kept(self.path)
        return None if content is None else unpacked(content, self.owner)

    def remove(self) -> None:
        """The cell is finished."""
        discard(self.path)


class SentCheckpoints(Checkpoints):
    """The checkpoints of a cell that runs elsewhere: bytes that travel to where files are written, and came from there.

    Args:
        latest: what the file held when the cell was started; None if there was none.
        owner: the cell's id.
    """

    def __init__(self, latest: bytes | None, owner: str) -> None:
        super().__init__(Path(), owner=owner)
        self._latest = latest
        self._unsent: bytes | None = None

    def save(self, progress: Checkpoint) -> None:
        """Make ``progress`` ready to be sent."""
        self._unsent = packed(progress, self.owner)

    def load(self) -> Checkpoint | None:
        """The checkpoint with which the cell was started; None if there was none, or it is not what was saved of this cell."""
        return None if self._latest is None else unpacked(self._latest, self.owner)

    def remove(self) -> None:
        """Who writes the row removes the file."""

    def unsent(self) -> bytes | None:
        """What was saved since the last call."""
        content, self._unsent = self._unsent, None
        return content


def keep(path: Path, content: bytes) -> None:
    """Write a packed checkpoint, for the owner's eyes alone.

    Raises:
        OSError: the file cannot be written.
    """
    with replaced(path, 0o600) as part:
        part.write_bytes(content)


def kept(path: Path) -> bytes | None:
    """What :func:`keep` wrote; None if there is nothing that can be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
