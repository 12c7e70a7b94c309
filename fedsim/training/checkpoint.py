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
from fedsim.files import replaced, unread
from fedsim.methods.messages import Tensors
from fedsim.training.state import Checkpoint, described

FACTS = ("round", "ledger", "uplink_bytes", "downlink_bytes", "secret")
"""The fields of a checkpoint beside its tensors."""
CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints."""


def packed(progress: Checkpoint, owner: str) -> bytes:
    """A checkpoint as one safetensors file with its own hash; private client state is in it, and the root of secret noise."""
    facts = {name: getattr(progress, name) for name in FACTS}
    tensors = {name: value.contiguous() for name, value in progress.tensors.items()}
    return save(tensors, {"progress": json.dumps(facts), "sha256": _digest(owner, facts, tensors)})


def unpacked(content: bytes, owner: str) -> Checkpoint | None:
    """The inverse of :func:`packed`; None, with a warning, if the content is damaged or another cell's."""
    try:
        tensors = {name: value.clone() for name, value in load(content).items()}
        # the header, whose length comes first, holds the facts
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        facts = json.loads(header["progress"])
        if header["sha256"] != _digest(owner, facts, tensors):
            raise ValueError("its content is not what this cell saved")
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
    """The checkpoints of one cell in a worker: bytes, which the driver writes to a file and reads again.

    Args:
        content: where an earlier training of the cell stood; None: there was none.
        owner: the cell's id; another cell does not accept a checkpoint.
        every: seconds between checkpoints; default: :data:`CHECKPOINT_SECONDS`.
    """

    def __init__(self, content: bytes | None = None, owner: str = "", every: float | None = None) -> None:
        self.content, self.owner, self.every = content, owner, every
        self._sent, self._last = content, time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Capture a checkpoint if enough time has passed since the last one."""
        if time.monotonic() - self._last >= (CHECKPOINT_SECONDS if self.every is None else self.every):
            self.save(capture())
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Make ``progress`` the last checkpoint."""
        self.content = packed(progress, self.owner)

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none, or it is damaged or another cell's."""
        return None if self.content is None else unpacked(self.content, self.owner)

    def unsent(self) -> bytes | None:
        """The last checkpoint if it was saved since the last call."""
        content, self._sent = (None if self.content is self._sent else self.content), self.content
        return content


def keep(path: Path, content: bytes) -> None:
    """Write a packed checkpoint, readable by the file's owner only."""
    with replaced(path, 0o600) as part:
        part.write_bytes(content)


def kept(path: Path) -> bytes | None:
    """The content that :func:`keep` wrote; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
